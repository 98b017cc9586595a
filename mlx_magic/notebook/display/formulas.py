r"""TeX in untrusted text: which formulas are typeset, and which are shown as source.

JupyterLab, Notebook 7, nbviewer and nbconvert's HTML typeset TeX anywhere in the page, after the
HTML was sanitized. TeX can fetch, link, and cover the page (``\unicode``, ``\href``, ``\style``,
``\rule``). So every element that shows untrusted text has the class `UNSET`, and only formulas
whose commands are all known to draw within their own area get the class `SET`. All other
modules use this one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

# First for MathJax 3 and 4 (JupyterLab), second for MathJax 2 (nbconvert, nbviewer).
SET_CLASSES = ("mathjax_process", "tex2jax_process")
UNSET = "mathjax_ignore tex2jax_ignore"
"""Class of an HTML element whose TeX is not typeset."""
SET = " ".join(SET_CLASSES)
"""Class of an element inside an `UNSET` one whose TeX is typeset."""

LONGEST = 2_000
"""Maximum length of a typeset formula, in characters."""
MOST = 300
"""Maximum number of typeset formulas in an answer: MathJax takes milliseconds for each."""

_DEEPEST = 20
_MOST_COMMANDS = 300
_MOST_IN_A_ROW = 12

# Commands that draw within their own area, in proportion to their arguments. No definitions,
# links, classes, styles, colors, sizes in units, negative or arbitrary space, zero-width boxes.
_SYMBOLS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa varkappa lambda mu nu
xi omicron pi varpi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta
Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega digamma aleph beth gimel daleth
hbar hslash ell wp Re Im imath jmath partial nabla infty emptyset varnothing prime backprime
forall exists nexists neg lnot top bot angle measuredangle sphericalangle triangle square Box
blacksquare lozenge Diamond bigstar flat natural sharp clubsuit diamondsuit heartsuit spadesuit
surd checkmark complement mho eth degree dagger ddagger dag ddag S P copyright pounds yen
pm mp times div cdot cdotp ast star circ bullet oplus ominus otimes oslash odot cap cup uplus sqcap
sqcup vee wedge lor land setminus smallsetminus wr amalg bigcirc bigtriangleup bigtriangledown
triangleleft triangleright ltimes rtimes bowtie diamond dotplus Cap Cup doublecap doublecup
barwedge veebar boxplus boxminus boxtimes boxdot circledast circledcirc circleddash intercal
sum prod coprod int iint iiint iiiint oint bigcap bigcup bigsqcup bigvee bigwedge bigoplus
bigotimes bigodot biguplus intop smallint
le leq leqq leqslant ge geq geqq geqslant ne neq lt gt ll gg lll ggg equiv sim simeq approx approxeq
cong propto asymp doteq doteqdot models vdash dashv Vdash vDash Vvdash perp mid nmid parallel
nparallel smile frown in ni notin owns subset supset subseteq supseteq subsetneq supsetneq
nsubseteq nsupseteq sqsubset sqsupset sqsubseteq sqsupseteq prec succ preceq succeq precsim succsim
lesssim gtrsim lessgtr gtrless lessapprox gtrapprox triangleq coloneqq eqqcolon eqsim bumpeq Bumpeq
circeq fallingdotseq risingdotseq backsim backsimeq trianglelefteq trianglerighteq vartriangle
vartriangleleft vartriangleright therefore because between pitchfork nless ngtr nleq ngeq nsim ncong
nprec nsucc nvdash nvDash ntriangleleft ntriangleright not
gets to leftarrow rightarrow uparrow downarrow leftrightarrow updownarrow Leftarrow Rightarrow
Uparrow Downarrow Leftrightarrow Updownarrow longleftarrow longrightarrow longleftrightarrow
Longleftarrow Longrightarrow Longleftrightarrow mapsto longmapsto hookleftarrow hookrightarrow
leftharpoonup leftharpoondown rightharpoonup rightharpoondown rightleftharpoons leftrightharpoons
nearrow searrow swarrow nwarrow iff implies impliedby leadsto rightsquigarrow twoheadrightarrow
twoheadleftarrow rightarrowtail leftarrowtail curvearrowleft curvearrowright circlearrowleft
circlearrowright nrightarrow nleftarrow nRightarrow nLeftarrow nleftrightarrow nLeftrightarrow
upharpoonleft upharpoonright rightrightarrows leftleftarrows upuparrows downdownarrows multimap
dots ldots cdots vdots ddots dotsb dotsc dotsi dotsm dotso colon
lbrace rbrace lbrack rbrack langle rangle lfloor rfloor lceil rceil lvert rvert lVert rVert vert
Vert backslash lgroup rgroup lmoustache rmoustache ulcorner urcorner llcorner lrcorner
arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf injlim ker lg lim liminf
limsup ln log max min Pr projlim sec sin sinh sup tan tanh varlimsup varliminf varinjlim varprojlim
bmod mod pmod pod quad qquad enspace thinspace medspace thickspace
limits nolimits displaystyle textstyle scriptstyle scriptscriptstyle nonumber notag hline
left right middle big Big bigg Bigg bigl bigr bigm Bigl Bigr Bigm biggl biggr biggm Biggl Biggr
Biggm over choose rm bf it
"""
_WITH_ARGUMENTS = """
frac dfrac tfrac cfrac binom dbinom tbinom sqrt overset underset stackrel substack boxed fbox
cancel bcancel xcancel
hat widehat bar vec dot ddot dddot ddddot tilde widetilde acute grave check breve mathring
overline underline overbrace underbrace overrightarrow overleftarrow overleftrightarrow
underrightarrow underleftarrow xrightarrow xleftarrow
mathrm mathbf mathit mathsf mathtt mathbb mathcal mathscr mathfrak mathnormal boldsymbol bm pmb
text textrm textbf textit textsf texttt textnormal mbox operatorname
mathop mathbin mathrel mathord mathopen mathclose mathpunct mathinner
"""
_COMMANDS_WITH_ARGUMENTS = frozenset(_WITH_ARGUMENTS.split())
COMMANDS = frozenset(_SYMBOLS.split()) | _COMMANDS_WITH_ARGUMENTS
"""Names of commands that are typeset."""

_SIGNS = frozenset(",:;>!{}|_&%$# \\\n")
_PARTS = """
matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix cases rcases array aligned alignedat
gathered split
"""
# Environments that need no delimiters.
_WHOLE = "equation equation* align align* gather gather* multline multline* eqnarray eqnarray*"
_DISPLAYS = frozenset(_WHOLE.split())
ENVIRONMENTS = frozenset(_PARTS.split()) | _DISPLAYS
"""Names of environments that are typeset."""

_PART = re.compile(
    r"\\(?P<which>begin|end)\{(?P<name>[A-Za-z]{1,20}\*?)\}"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|\\(?P<sign>.)"
    r"|(?P<brace>[{}])"
    r"|(?P<text>[^\\{}]+)",
    re.DOTALL,
)
_ROW = re.compile(r"[ \n]*(?:\*|\[)")
_ROW_SPACE = re.compile(r"\[[ ]*(?:[0-9](?:\.[0-9]{1,2})?(?:em|ex|mm)|[0-9]{1,2}(?:pt|px))[ ]*\]")
_ROWS_WITH_SPACE = re.compile(r"\\\\\[[^\]\\]*\]")
_COLUMNS = re.compile(r"(?:\[[tbc]\])?\{[lcr| ]{1,40}\}|(?![\s\S])")
_COUNT = re.compile(r"\{[0-9]{1,2}\}")
# Comments, parameters, nested formulas; quotes, URLs and code of Markdown; TeX's notation
# for any character by its number (^^).
_NEVER = re.compile('[%#$`"@\0-\x09\x0b-\x1f\x7f]|\\^\\^|//|\n[ \t]*\n')
_CATEGORIES = "Lu Ll Lt Lm Lo Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs"
_VISIBLE = frozenset(_CATEGORIES.split())
_SEPARATORS = tuple(":/,;|-\u2013\u2014")
_COMMAND = re.compile(r"\\[A-Za-z]+ *(?:\{[^{}]*\})?|\\.")
_WORDS = re.compile(r"[^\W\d_]{2,} +[^\W\d_]{2,}|(?:^|[ \d]) *(?:and|each|for|or|per|to) ")
_BLANK_LINE = re.compile(r"\n[ \t>]*\n")
_OPENING = re.compile(r"\\begin\{([A-Za-z]{1,20}\*?)\}")


def draws_only(tex: str) -> bool:
    """Return whether each command of a formula is known to draw within its own area.

    Parameters
    ----------
    tex : str
        Without its delimiters.
    """
    if not tex.strip() or len(tex) > LONGEST or not (tex.isascii() or _plain_letters(tex)):
        return False
    open_groups: list[str] = []
    commands = consecutive = negative_spaces = 0
    for part in _PART.finditer(tex):
        kind, value = part.lastgroup, part[0]
        if kind == "text":
            if _NEVER.search(value):
                return False
            consecutive = consecutive if value.isspace() else 0
            continue
        if kind == "brace":
            if value == "{":
                open_groups.append("{")
            elif not open_groups or open_groups.pop() != "{":
                return False
            consecutive = 0
        elif kind == "name":
            if not _environment(part, tex, open_groups):
                return False
        elif kind == "command":
            if part["command"] not in COMMANDS:
                return False
            takes_arguments = part["command"] in _COMMANDS_WITH_ARGUMENTS
            consecutive = consecutive + 1 if takes_arguments else 0
        elif part["sign"] not in _SIGNS or not _row_fits(part, tex):
            return False
        negative_spaces += value == "\\!"
        commands += 1
        if (
            len(open_groups) > _DEEPEST
            or commands > _MOST_COMMANDS
            or consecutive > _MOST_IN_A_ROW
            or negative_spaces > 6
        ):
            return False
    # An escaped space at the end would lose its space when the formula is stripped.
    return not open_groups and not _odd(tex.rstrip(), len(tex.rstrip()))


def _row_fits(part: re.Match[str], tex: str) -> bool:
    """Return False for the end of a row that asks for too much extra space, else True."""
    if part["sign"] != "\\" or not _ROW.match(tex, part.end()):
        return True
    return _ROW_SPACE.match(tex, part.end()) is not None


def _environment(part: re.Match[str], tex: str, open_groups: list[str]) -> bool:
    """Open or close an environment; return whether it is allowed."""
    name = part["name"]
    if name not in ENVIRONMENTS:
        return False
    if part["which"] == "end":
        return bool(open_groups) and open_groups.pop() == name
    open_groups.append(name)
    if name == "array":
        return _COLUMNS.match(tex, part.end()) is not None
    if name == "alignedat":
        return _COUNT.match(tex, part.end()) is not None
    return True


def _plain_letters(tex: str) -> bool:
    """Return whether all non-ASCII characters are visible and not combining marks."""
    return all(sign < "\x80" or unicodedata.category(sign) in _VISIBLE for sign in tex)


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula found in a text.

    Attributes
    ----------
    end : int
        Its end position in the text.
    source : str
        With its delimiters.
    tex : str
        Without its delimiters; a bare environment has none.
    kind : {"inline", "display", "environment"}
    """

    end: int
    source: str
    tex: str
    kind: str

    @property
    def allowed(self) -> bool:
        """Whether it may be typeset."""
        return draws_only(self.tex)

    def html(self) -> str:
        """Return HTML that is typeset inside an element of class `UNSET`."""
        opening, closing = {"inline": ("\\(", "\\)"), "display": ("\\[", "\\]")}.get(
            self.kind, ("", "")
        )
        return f'<span class="{SET}">{escape(opening + _normalized(self.tex) + closing)}</span>'

    def markdown(self) -> str:
        """Return Markdown that is typeset inside an element of class `UNSET`."""
        mark = {"inline": "$", "display": "$$"}.get(self.kind, "")
        tex = _ROWS_WITH_SPACE.sub(r"\\\\", self.tex)
        return f'<span class="{SET}">{mark}{_normalized(tex)}{mark}</span>'


def _normalized(tex: str) -> str:
    r"""Return a formula on one line, spaced so that Markdown and HTML parsers cannot misread it.

    A program that removes one of the two backslashes of a row end must not find a command after
    it (``\\unicode``), and one that looks for braces must not find a brace.
    """
    tex = re.sub(r"\s+", " ", tex.strip())
    tex = re.sub(r"\\\\(?!\[)|\\(?:[^\\]|$)", _with_space, tex)
    tex = re.sub(r"<(?=\S)", "< ", tex)
    return re.sub(r"(\]|!)(?=[(:\[])", r"\1 ", tex)


def _with_space(found: re.Match[str]) -> str:
    return "\\\\ " if found[0] == "\\\\" else found[0]


def find(text: str, at: int) -> Formula | None:
    """Return the formula that begins at a position, allowed or not.

    Parameters
    ----------
    text : str
    at : int
        Position of a dollar sign or a backslash.
    """
    limit = at + 2 * LONGEST
    if text.startswith("$$", at):
        found = _between(text, at, "$$", "$$", "display")
        # "$$5 and $$6" is not a formula.
        return None if found is None or text[found.end : found.end + 1].isdigit() else found
    if text[at] == "$":
        end = at + 1
        while (end := text.find("$", end, limit)) != -1 and text[end - 1] == "\\":
            end += 1
        if end == -1 or _are_prices(text, at, end):
            return None
        return _formula(text, at, end + 1, at + 1, end, "inline")
    if text.startswith("\\(", at):
        return _between(text, at, "\\(", "\\)", "inline")
    if text.startswith("\\[", at):
        return _between(text, at, "\\[", "\\]", "display")
    opening = _OPENING.match(text, at)
    if opening is None:
        return None
    closing = f"\\end{{{opening[1]}}}"
    end, depth = opening.end(), 0
    for _ in range(_DEEPEST):
        position = text.find(closing, end, limit)
        if position == -1:
            return None
        depth += text.count(opening[0], end, position)
        end = position + len(closing)
        if not depth:
            kind = "environment" if opening[1] in _DISPLAYS else "display"
            return _formula(text, at, end, at, end, kind)
        depth -= 1
    return None


def _are_prices(text: str, at: int, end: int) -> bool:
    """Return whether two dollar signs are those of prices or of variables of a shell.

    As in pandoc no space follows the first or precedes the last one, and no digit follows the
    last one: "$5 and $6". Formulas do not look like the other cases.
    """
    inside, after = text[at + 1 : end], text[end + 1 : end + 3]
    if inside[:1].isspace() or inside[-1:].isspace() or after[:1].isdigit():
        return True
    # "5$/10$", but not "90$^\\circ$".
    if text[max(0, at - 1) : at].isdigit() and inside[:1] not in ("^", "_", "\\", "{"):
        return True
    # "$.50/$.75", "$HOME:$PATH".
    if inside[-1:] in _SEPARATORS and (after[:1].isalnum() or after[:1] in ("_", "{", ".")):
        return True
    # "$5 each or 3 for 10$".
    return inside[:1].isdigit() and _WORDS.search(_COMMAND.sub(" ", inside)) is not None


def _between(text: str, at: int, opening: str, closing: str, kind: str) -> Formula | None:
    begin = at + len(opening)
    end = text.find(closing, begin, at + 2 * LONGEST)
    # "\\" before the closing backslash is a row end.
    while end != -1 and closing[0] == "\\" and text[end - 1] == "\\" and _odd(text, end):
        end = text.find(closing, end + 1, at + 2 * LONGEST)
    return None if end == -1 else _formula(text, at, end + len(closing), begin, end, kind)


def _odd(text: str, end: int) -> bool:
    """Return whether an odd number of backslashes precedes a position."""
    run = text[max(0, end - LONGEST) : end]
    return (len(run) - len(run.rstrip("\\"))) % 2 == 1


def _formula(text: str, at: int, end: int, begin: int, until: int, kind: str) -> Formula | None:
    tex = text[begin:until]
    if not tex.strip() or _BLANK_LINE.search(tex):
        return None
    return Formula(end, text[at:end], tex, kind)


def enable(parser: MarkdownIt) -> None:
    """Add formulas to a Markdown parser: allowed ones are typeset, others are shown as code."""
    parser.inline.ruler.before("escape", "formula", _inline_rule)
    stops = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("code", "formula", _block_rule, {"alt": stops})
    parser.add_render_rule("formula", _render)


def _inline_rule(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    formula = find(state.src, state.pos)
    if formula is None or formula.end > state.posMax:
        return False
    if not silent:
        _push(state, formula)
    state.pos = formula.end
    return True


def _block_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if state.is_code_block(start):
        return False
    at = state.bMarks[start] + state.tShift[start]
    if state.src[at : at + 2] not in ("$$", "\\[", "\\b"):
        return False
    formula = find(state.src, at)
    if formula is None or not formula.allowed:
        return False
    line = start + formula.source.count("\n")
    # The markers of quotes and lists are not part of the formula.
    if line >= end or state.src[formula.end : state.eMarks[line]].strip(" \t"):
        return False
    if any(state.sCount[between] < state.blkIndent for between in range(start + 1, line + 1)):
        return False
    inside = find(state.getLines(start, line + 1, state.blkIndent, False).strip(), 0)
    if inside is None or not inside.allowed:
        return False
    if not silent:
        state.line = line + 1
        for type_, nesting in (("paragraph_open", 1), ("formula", 0), ("paragraph_close", -1)):
            token = state.push(type_, "p" if nesting else "", nesting)  # type: ignore[arg-type]
            token.map = [start, state.line]
            token.meta = {"formula": inside}
    return True


def _push(state: StateInline, formula: Formula) -> None:
    token = state.push("formula", "", 0)
    token.content = formula.source
    token.meta = {"formula": formula}


def _render(
    self: object, tokens: Sequence[Token], index: int, options: object, env: dict[str, int]
) -> str:
    formula: Formula = tokens[index].meta["formula"]
    env["formulas"] = env.get("formulas", 0) + 1
    if env["formulas"] <= MOST and formula.allowed:
        return formula.html()
    return f"<code>{escape(formula.source)}</code>"
