"""Optional packages: what to type where one is missing."""

from __future__ import annotations


def install_hint(extra: str) -> str:
    """Write the command that installs the packages of an extra of this distribution.

    >>> install_hint("attacks")
    "pip install 'darts-bio[attacks]'"
    """
    return f"pip install 'darts-bio[{extra}]'"
