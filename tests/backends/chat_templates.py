"""Chat templates for tests: real shapes, templates that exceed limits, and hostile ones."""

# ruff: noqa: E501 - the lines of real templates are long

from __future__ import annotations

from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city, in °C & <more>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "n": {"type": ["integer", "null"]}},
                "required": ["city"],
            },
        },
    }
]

_TEXT = (
    "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)

RENDERS = {
    "chatml": _TEXT
    + """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + text(message['content']) | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "llama3": _TEXT
    + """
{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = text(messages[0]['content'])|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- text(message['content']) | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
""",
    "mistral": """
{%- set today = strftime_now("%Y") %}
{%- set default = "Today is " + today + ". {{ not a block }}" %}
{{- bos_token }}
{%- if messages[0]["role"] == "system" %}
    {%- set system, loop_messages = messages[0]["content"], messages[1:] %}
{%- else %}
    {%- set system, loop_messages = default, messages %}
{%- endif %}
[SYSTEM_PROMPT]{{ system }}[/SYSTEM_PROMPT]
{%- set ns = namespace(index=0, users=[]) %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" or message.get("tool_calls") %}
        {%- set ns.index = ns.index + 1 %}
        {%- set ns.users = ns.users + [loop.index0] %}
    {%- endif %}
    {%- if message["role"] in ("user", "tool") %}
        {{- "[INST]" ~ message["content"] ~ "[/INST]" }}
    {%- elif message["role"] == "assistant" %}
        {{- " " ~ message["content"] ~ eos_token }}
        {%- for call in message.tool_calls or [] %}
            {{- "[TOOL_CALLS]" ~ call.function.name ~ call.function.arguments|tojson|string }}
            {%- if not loop.last %}, {% endif %}
        {%- endfor %}
    {%- else %}
        {{- raise_exception("Only user, tool and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
{{- ns.users|join("-") }}
""",
    "qwen3": """
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- "# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\n{"name": <function-name>}<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""",
    "macros": """
{%- macro typed(schema, depth=0) %}
    {%- if schema.type is string %}{{ schema.type }}
    {%- elif schema.type is iterable %}{{ schema.type|sort|join(" | ") }}{% endif %}
    {%- for key, value in (schema.properties or {})|dictsort %}
        {{- "\n" ~ "  " * (depth + 1) ~ key ~ ": " }}{{ typed(value, depth + 1) }}
    {%- endfor %}
{%- endmacro %}
{%- for tool in tools or [] %}{{ typed(tool.function.parameters) }}{% endfor %}
{%- macro box(title) %}[{{ title|upper }}:{{ caller(varargs) }}]{% endmacro %}
{%- call(more) box('a', 1, 2) %}{{ more }}{% endcall %}
{%- filter upper %}shout {{ messages|length }}{% endfilter %}
{%- set block %}{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.cycle('a', 'b') }}{% endfor %}{% endset %}
{{- block|replace('/', ' of ') }}
""",
    "generation": """
{% for message in messages %}
    {% if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {% else %}
<{{ message.role }}>{{ message.content }}
    {% endif %}
{% endfor %}
""",
    "break and continue": """
{% for message in messages %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
{{ loop.index }}{{ message.role }}
{% else %}none
{% endfor %}
{% for a in [3, 1, 2] recursive %}{{ a }}{% if a > 2 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}
{% for c in 'abc' if c != 'b' %}{{ c }}{% endfor %}
""",
    "filters": """
{{ messages|map(attribute='role')|list }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='role')|unique|join(',') }}
{{ [3, 1, 2]|sort }} {{ [1, 2, 3]|sum }} {{ [[1], [2]]|sum(start=[]) }} {{ [1, 5]|max }} {{ [1, 5]|min }}
{{ ['a', none, 'b']|select|list }} {{ range(5)|batch(2, 0)|list }} {{ range(5)|slice(2)|list }}
{{ 'a b c'|title }} {{ 'a b'|capitalize }} {{ 'abc'|first }}{{ [1, 2]|last }} {{ 'x'|center(7) }}|
{{ '%s is %05.2f'|format('pi', 3.14159) }} {{ '%d%%' % 7 }} {{ '{} {a!r:>5} {0[0]}'.format([1, 2], a='z') }}
{{ 'ab\ncd'|indent(3, true) }} {{ '  x '|trim }} {{ 'a,b'.split(',') }} {{ ' a  b '.split() }} {{ 'xay'.replace('a', '--') }}
{{ {'b': 1, 'a': [2]}|tojson(sort_keys=true, separators=(',', ':')) }} {{ {'ä': 1}|tojson(ensure_ascii=true) }}
{{ {'b': 1, 'a': 2}|dictsort }} {{ {'a': 1}.items()|list }} {{ dict(a=1, b=2) }} {{ 'a' in {'a': 1} }}
{{ messages|groupby('role')|map('first')|list }} {{ 3.7|round|int }} {{ '7'|int + 1 }} {{ -7 // 2 }} {{ 2 ** 10 }}
{{ 'long text here'|truncate(9) }} {{ 'a b'|wordcount }} {{ '<a>'|e }} {{ missing|default('d') }} {{ none|d('e', true) }}
{{ 'abc'[::-1] }} {{ [1, 2, 3][1:] }} {{ 'a' ~ 1 ~ none ~ [1] ~ missing }} {{ 'a' * 3 }} {{ [0] * 2 + [1] }} {{ 'x'|attr('upper')() }}
{{ 1 < 2 < 3 }} {{ 'a' if missing else 'b' }} {{ (1, 'b') }} {{ namespace(a=1).a }} {{ cycler('x', 'y').next() }} {{ joiner('-')() }}
{{ 1.5 }} {{ true }} {{ 10|float }} {{ 'a b'|urlencode }} {{ [1, 2]|reverse|list }} {{ 'abc'|reverse }} {{ -3|abs }} {{ 'A'|lower }}
{{ 'abc'.rjust(5) }} {{ 'abc'.partition('b') }} {{ 'a\nb'.splitlines() }} {{ '-'.join(['a', 'b']) }} {{ 'abc'.find('c') }} {{ 5 is odd }}
""",
}

_DOUBLE = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = EXPR %}{% endfor %}{{ ns.x }}"


def _doubled(expression: str, begin: str = "'aaaaaaaa'") -> str:
    return _DOUBLE.replace("EXPR", expression).replace("'aaaaaaaa'", begin)


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "range": "{{ range(10**9)|list }}",
    "range in steps": "{{ ([range(99999)] * 99999)|map('list')|list }}",
    "power": "{{ 9 ** (9 ** 99) }}",
    "products": _doubled("ns.x * ns.x", "3"),
    "text times": "{{ 'a' * 10**10 }}",
    "list times": "{{ [0] * 10**10 }}",
    "concatenation": _doubled("ns.x ~ ns.x"),
    "addition": _doubled("ns.x + ns.x"),
    "lists": _doubled("ns.x + ns.x", "[1]"),
    "join filter": _doubled("[ns.x, ns.x]|join"),
    "join method": _doubled("ns.x.join([ns.x, ns.x])"),
    "replace filter": _doubled("ns.x|replace('a', ns.x)"),
    "replace method": _doubled("ns.x.replace('a', 'aaaa')"),
    "escape": _doubled("ns.x|forceescape ~ ns.x", "'<'"),
    "list in itself": _doubled("[ns.x, ns.x]", "[1]"),
    "dict in itself": _doubled("{'a': ns.x, 'b': ns.x}", "{}"),
    "dict() in itself": _doubled("dict(a=ns.x, b=ns.x)", "{}"),
    "tuple in itself": _doubled("(ns.x, ns.x)", "(1,)"),
    "batch in itself": _doubled("[ns.x]|batch(2, ns.x)|list", "[1]"),
    "center filter": "{{ 'a'|center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**10) }}",
    "indent by text": "{{ ('a\n' * 99999)|indent('x' * 99999) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format of format": "{{ '{:{}}'.format(1, 10**10) }}",
    "format many": "{{ ('{0}' * 3000).format('a' * 4000000) }}",
    "format_map": "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
    "printf": "{{ '%9999999999d' % 1 }}",
    "printf star": "{{ '%*d' % (10**9, 1) }}",
    "printf precision": "{{ '%.999999999f' % 1 }}",
    "printf many": "{{ ('%(a)s' * 3000) % {'a': 'a' * 4000000} }}",
    "printf filter": "{{ '%9999999999d'|format(1) }}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "while": "{% macro w() %}{% for i in range(9999) %}{{ w() }}{% endfor %}{% endmacro %}{{ w() }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "wordwrap": "{{ ('a ' * 9999)|wordwrap(1, wrapstring='x' * 99999) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{% for x in [1]|slice(10**9) %}{{ loop.length }}{% endfor %}",
    "round": "{{ 5|round(-(10**9)) }}",
    "strip": "{{ ('a' * 4000000).strip('b' * 4000000 ~ 'a') }}",
    "trim": "{{ ('a' * 4000000)|trim('b' * 4000000 ~ 'a') }}",
    "split": "{{ ('a ' * 2000000).split() }}",
    "list of characters": "{{ ('a' * 4000000)|list }}",
    "sum of lists": "{{ ([[1]] * 60000)|sum(start=[]) }}",
    "tojson indent": "{{ {'a': [1]}|tojson(indent=10**10) }}",
    "tojson separators": "{{ range(9999)|list|tojson(separators=('x' * 99999, ':')) }}",
    "sort of namespaces": "{% set ns = namespace(x='a' * 4000000) %}{{ ([ns] * 99999)|sort(attribute='x') }}",
    "attribute path": "{{ [1]|map(attribute='a.' * 2000000)|list }}",
    "int": "{{ ('9' * 4000000)|int }}",
    "date": "{{ strftime_now('%9999999999Y') }}",
    "append": "{% set l = [] %}{% for i in range(99999) %}{% set _ = l.append(1) %}{% endfor %}",
    "encode": "{{ ('\xe9' * 99999).encode('punycode') }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "arguments": "{% macro f() %}{{ varargs }}{% endmacro %}{% set x = 'a' * 4000000 %}{{ f(x"
    + ", x" * 999
    + ") }}",
    "autoescape": "{% autoescape true %}{{ messages }}{% endautoescape %}",
    "huge literal": "x" * 5_000_000,
    "parentheses": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "conditions": "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "loops": "{% for a in [1] %}" * 99 + "x" + "{% endfor %}" * 99,
}
"""Each is refused, most of them before anything was made."""

LARGE = {
    "output": "{% set x = 'a' * 4000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "set block": "{% set x = 'a' * 4000000 %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}",
    "set block of lists": "{% set x = ['a' * 2000000] %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}",
    "call block": "{% macro f() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call f() %}{{ 'a' * 1000000 }}{% endcall %}",
    "wide": "{% for i in range(99999) %}{{ '\xe9\U0001f600' * 1000000 }}{% endfor %}",
    "slices": "{% set x = 'a' * 4000000 %}"
    + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(999)),
    "lists kept": "{% set ns = namespace(x=none) %}{% for i in range(99999) %}{% set ns.x = [ns.x, range(999)|list] %}{% endfor %}",
    "texts kept": "{% set ns = namespace(x=none) %}{% for i in range(99999) %}{% set ns.x = (ns.x, 'a' * 999 ~ i) %}{% endfor %}",
}
"""Each would take much memory."""

COSTLY = {
    "loops with a condition": "{% for a in range(99999) %}{% for b in range(99999) if none %}x{% endfor %}{% endfor %}",
    "two calls each": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "ranges": "{% for i in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "search in search": "{% set l = range(99999)|list %}{{ l|select('in', l[::-1])|list }}",
    "unique": "{% for i in range(9999) %}{{ range(99999)|unique|list|length }}{% endfor %}",
    "comparisons": "{% set a = [1] * 50000 %}{% for i in range(99999) %}{% set b = a == [1] * 50000 %}{% endfor %}",
    "hashes": "{% set t = (1,) * 50000 %}{% for i in range(99999) %}{% set b = {t: 1} %}{% endfor %}",
    "lengths": "{% for a in range(99999) %}{% for b in range(99999)|map('string') %}{{ loop.length }}{% endfor %}{% endfor %}",
    "cycler": "{% set c = cycler(1, 2) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set _ = c.next() %}{% endfor %}{% endfor %}",
    "long list": "{{ [" + "1," * 99999 + "1]|length }}",
}
"""Each would run for long."""

UNSAFE = {
    "class": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch ' ~ messages[0].content) }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "globals of a function": "{{ range.__globals__ }}{{ namespace.__init__.__globals__ }}",
    "item": "{{ ''['__class__'] }}",
    "attr": "{{ ''|attr('__class__') }}",
    "map": "{{ ['']|map(attribute='__class__')|list }}",
    "format": "{{ '{0.__class__}'.format('') }}",
    "format item": "{{ '{0[__class__]}'.format(cycler) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "format by attr": "{{ ('{0.__class__}'|attr('format'))('') }}",
    "self": "{{ self._TemplateReference__context }}",
    "generator": "{{ ([1]|map('string')).gi_frame }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import system %}",
    "extends": "{% extends '/etc/passwd' %}",
}
"""Each reaches for what would let it run code, or read files."""
