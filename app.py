"""Starts the studio: python app.py, then open http://127.0.0.1:7860."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Open the studio and stay until it is closed; training goes on without it."""
    parser = argparse.ArgumentParser(
        description="Atelier: fine-tune language models in the browser, on your own machine."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--home", type=Path, help="where runs and data are kept (default: .atelier in your home folder)"
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        help="a further address that browsers call it by, such as https://studio.example",
    )
    parser.add_argument("--sign-in", type=Path, help="a private file with user:password; ATELIER_SIGN_IN does the same")
    options = parser.parse_args()
    if options.home:
        os.environ["ATELIER_HOME"] = str(options.home.expanduser().resolve())

    from core import garbage, runs
    from core.problem import Problem
    from studio import gate

    garbage.put_off()
    try:
        gate.drop_gradio_environment(runs.home())
        settings = gate.GateSettings(
            runs.runs_folder(),
            options.host,
            options.port,
            tuple(options.origin),
            gate.Credentials.read(options.sign_in),
        )
        gate.check_settings(settings)
        from studio.window import serve

        return serve(settings)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
