"""Files that a command is asked to write: looked at before anything is paid for."""

from __future__ import annotations

import argparse
from pathlib import Path

from cai.errors import UserError


def page(name: str) -> Path:
    """Return a path where a file can be written or replaced. Raises UserError where a folder stands there."""
    path = _below_a_folder(name)
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a file to write; give a file's name")
    return path


def unused(name: str) -> Path:
    """Return a path where nothing stands yet. Raises UserError where something does."""
    path = _below_a_folder(name)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: stands there already; give another name, or remove it first")
    return path


def folder(name: str) -> Path:
    """Return a path where a folder is or can be made. Raises UserError where a file stands there."""
    path = _below_a_folder(name)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: found a file, expected a folder; give a folder's name")
    return path


def _below_a_folder(name: str) -> Path:
    path = Path(name)
    above = next((p for p in path.parents if p.exists()), None)
    if above is not None and not above.is_dir():
        raise UserError(f"{path}: {above} is a file, expected a folder; give another place")
    return path


def count(text: str) -> int:
    """Return an option's whole number above nought, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number above 0")
    return int(text)
