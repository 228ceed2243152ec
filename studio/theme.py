"""How the window looks: Gradio's base theme with system fonts and one accent colour; the rest is style.css."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from studio.gate import plotly_url

STYLE = Path(__file__).parent / "style.css"

# Gradio puts this into the page while it draws it, so it acts at once: the page's language, and the colours that were chosen.
# The library that draws charts takes a second to read: it is read once the page stands, or for the first chart.
HEAD = f"""<link rel="prefetch" href="{plotly_url()}" as="script">
<meta name="color-scheme" content="light dark">
<script>
window.atelierPlotly = () => {{
  window.atelierPlotly = null;
  document.head.append(Object.assign(document.createElement('script'), {{src: '{plotly_url()}'}}));
}};
setTimeout(() => (window.requestIdleCallback ?? setTimeout)(() => window.atelierPlotly?.()), 3000);
(() => {{
  document.documentElement.lang = location.pathname.split('/')[1];
  const wanted = localStorage.getItem('atelier.theme');
  if (!wanted) return;
  const dress = () => {{ if (!window.atelierThemed) document.body.classList.toggle('dark', wanted === 'dark'); }};
  dress();
  new MutationObserver(dress).observe(document.body, {{attributes: true, attributeFilter: ['class']}});
}})();
</script>"""

_FONT = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Noto Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "sans-serif",
]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


_ACCENT = gr.themes.Color(
    name="atelier", c50="#eef5f4", c100="#d7e8e6", c200="#b0d2ce", c300="#82b7b1", c400="#4f9790", c500="#2c7d75",
    c600="#1d6a62", c700="#18564f", c800="#14443f", c900="#103631", c950="#0a2320",
)  # fmt: skip

# What Gradio calls it -> light, dark.
_COLOURS = {
    "body_background_fill": ("#faf9f7", "#171614"),
    "background_fill_primary": ("#ffffff", "#1f1e1b"),
    "background_fill_secondary": ("#f4f2ee", "#191815"),
    "body_text_color": ("#24221f", "#ecebe8"),
    "body_text_color_subdued": ("#625d55", "#a8a29a"),
    "border_color_primary": ("#e4e0d9", "#37342f"),
    "block_background_fill": ("transparent", "transparent"),
    "block_label_background_fill": ("transparent", "transparent"),
    "block_info_text_color": ("*body_text_color_subdued", "*body_text_color_subdued"),
    "input_background_fill": ("#ffffff", "#26241f"),
    "input_border_color": ("#8f897f", "#6f6a61"),
    "button_primary_background_fill": ("*primary_600", "*primary_600"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_500"),
    "button_primary_text_color": ("#ffffff", "#ffffff"),
    "button_secondary_background_fill": ("#ffffff", "#26241f"),
    "button_secondary_border_color": ("#c9c4bb", "#4a463f"),
    "button_cancel_background_fill": ("#ffffff", "#26241f"),
    "button_cancel_text_color": ("#a02c1c", "#ff9d8d"),
    "button_cancel_border_color": ("#c98b82", "#7a4238"),
}
_SHAPES = {
    "block_border_width": "0px",
    "block_title_text_weight": "600",
    "block_title_text_color": "*body_text_color",
    "block_shadow": "none",
    "input_border_width": "1px",
    "input_border_color_focus": "*primary_500",
    "input_shadow": "none",
    "button_border_width": "1px",
    "button_large_text_weight": "600",
    "button_small_text_weight": "400",
    "button_medium_text_weight": "400",
    "slider_color": "*primary_500",
}


def build() -> gr.themes.Base:
    """The theme, light and dark."""
    theme = gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=gr.themes.colors.stone,
        font=_FONT,
        font_mono=_MONO,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
    )
    light = {name: colours[0] for name, colours in _COLOURS.items()}
    dark = {f"{name}_dark": colours[1] for name, colours in _COLOURS.items()}
    return theme.set(**_SHAPES, **light, **dark)
