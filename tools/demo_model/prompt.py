"""How a conversation is written as text; the chat template below writes the same."""

from __future__ import annotations

from tools.demo_model.samples import Sample

START, STOP = "<|im_start|>", "<end_of_utterance>"
FAKE, IMAGE, GLOBAL = "<fake_token_around_image>", "<image>", "<global-img>"
IMAGE_TOKENS = 64
IMAGE_BLOCK = FAKE + GLOBAL + IMAGE * IMAGE_TOKENS + FAKE

TEMPLATE = """<|im_start|>{% for message in messages -%}
{{ message['role'] | capitalize }}:
{%- if message['content'] is string -%}
{{ ' ' + message['content'] | trim }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part is mapping and part['type'] == 'image' -%}{{ '<image>' }}{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part is string -%}{{ ' ' + part | trim }}
{%- elif part['type'] == 'text' -%}{{ ' ' + (part['text'] or part['content'] or '') | trim }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<end_of_utterance>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""


def pieces(made: Sample) -> list[tuple[str, int]]:
    """Return a conversation in pieces, each with the number of the answer that it is, or -1.

    Parameters
    ----------
    made
        The conversation.
    """
    system = f"System: {made.system}{STOP}\n" if made.system else ""
    text, parts = START + system, []
    for i, turn in enumerate(made.turns):
        text += f"User:{IMAGE_BLOCK * turn.images} {turn.question}{STOP}\nAssistant:"
        parts += [(text, -1), (f" {turn.answer}{STOP}", i)]
        text = "\n"
    return parts
