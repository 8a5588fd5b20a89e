"""The console that tables are printed on."""

from rich.console import Console


def console() -> Console:
    """As wide as the terminal, or wide enough for tables if there is none."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=max(120, terminal.width))
