"""Files that arrive through the page: only those that Gradio has just put into its own temporary folder are touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from core.problem import Problem


def find_upload(file: Any) -> Path:
    """The file behind an upload's name.

    Raises:
        Problem: it lies anywhere else; a name that a page sends must not open another file.
    """
    folder = get_upload_folder()
    try:
        path = Path(str(file or "")).resolve()
        if file and folder and path.is_relative_to(Path(folder).resolve()) and path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file system takes
        pass
    raise Problem("No file arrived.", to_do="Choose it again.")
