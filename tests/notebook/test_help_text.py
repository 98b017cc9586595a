from __future__ import annotations

from mlx_magic.notebook.magic_line.options import CELL_OPTIONS, LINE_OPTIONS, help_text


def test_cell_help_has_every_flag_with_its_trait() -> None:
    lines = [line.strip() for line in help_text("cell").splitlines()]
    for option in CELL_OPTIONS:
        rows = [line for line in lines if line.startswith(", ".join(option.flags))]
        if not option.available:
            assert rows == []
            continue
        [row] = rows
        assert option.help in row
        assert option.trait
        assert row.endswith(f" {option.trait}")


def test_line_help_has_every_subcommand_and_flag() -> None:
    text = help_text("line")
    for verb, options in LINE_OPTIONS.items():
        assert f"%vision {verb}" in text
        for option in options:
            assert (option.flags[0] in text) == option.available


def test_help_lines_fit_the_page_width() -> None:
    for text in (help_text("cell"), help_text("line")):
        assert max(map(len, text.splitlines())) <= 100
