"""Prompts and answers as the turns of a chat, in the format of a tokenizer's chat template.

The template is rendered once with marks in place of the texts (`_Frame`); the texts are then inserted between the parts of the
frame, which gives what the template itself would render. The date in a template is fixed, and thinking is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from casd.config import ModelConfig
from casd.utils.errors import ConfigError, ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES: Final = ("system", "user", "assistant")
TINY_TOKENS: Final = (*(f"<|{role}|>" for role in ROLES), "<|end|>")
"""Special tokens of `TINY_TEMPLATE`."""
TINY_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Chat template of the models that are built from scratch."""
# A template that escapes or rewrites texts would change these.
_SYSTEM, _USER, _ANSWER = (f'The "{role}" said <b> & it\'s {{so}}.' for role in ROLES)
_TODAY: Final = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}"
"""Put before a template: many write today's date into the system prompt, and tokens would change from day to day."""


def chat_template(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> ChatTemplate | None:
    """Return the chat template of a model, or None if its format is plain text.

    Raises:
        ModelError: as `ChatTemplate`.
    """
    return ChatTemplate(tokenizer, config.system_prompt, config.label) if config.format == "chat" else None


def render(tokenizer: PreTrainedTokenizerBase, user: str, system: str = "", answer: str | None = None, **options: Any) -> str:
    """Render a conversation by the tokenizer's chat template.

    Args:
        tokenizer: has a chat template.
        user: text of the user's turn.
        system: the system prompt; empty for none.
        answer: text of the assistant's turn; None to end where it begins.
        **options: arguments of `apply_chat_template` to replace.
    """
    texts = {"system": system or None, "user": user, "assistant": answer}
    messages = [{"role": role, "content": text} for role, text in texts.items() if text is not None]
    # Without thinking, templates of models that can think write what precedes an answer without thoughts.
    arguments = {"add_generation_prompt": answer is None, "enable_thinking": False, **options}
    template = f"{_TODAY}{tokenizer.get_chat_template()}"
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments))


@dataclass(frozen=True)
class _Frame:
    """What the template writes around the texts of a conversation.

    Attributes:
        before_system: up to the system prompt; empty if there is none.
        before_user: from there up to the user's text.
        after_user: from there to the end of the generation prompt.
        before_answer: white space between generation prompt and answer.
        end: from the answer's end to the end of the assistant's turn.
    """

    before_system: str
    before_user: str
    after_user: str
    before_answer: str
    end: str


class ChatTemplate:
    """The chat template of a tokenizer, for conversations of one question and one answer.

    Attributes:
        end: tokens that end the assistant's turn, beginning with `end_token`.
        end_token: special token that ends a generated answer.
        largest_token: largest token id that the template writes.

    Args:
        tokenizer: a fast tokenizer.
        system_prompt: the system prompt of every conversation; empty for none.
        model: the model's name, for messages.

    Raises:
        ModelError: the tokenizer has no chat template, or one that cannot be used: without a generation prompt, without a
            special token at the end of the assistant's turn, or one that changes the texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str = "", model: str = "the model"):
        self._tokenizer, self._system_prompt = tokenizer, system_prompt
        self._whose = f"The chat template of {model}"
        if not tokenizer.chat_template:
            raise ModelError(
                f"model.format is chat, but the tokenizer of {model} has no chat template. Use an instruct model, or"
                " model.format=text."
            )
        self._frame = cache(self._read_frame)
        self.answer = lru_cache(maxsize=8192)(self._answer)
        frame = self._frame(bool(system_prompt))
        self._before_answer = self._tokens(frame.after_user)
        whole = self._tokens(f"{frame.after_user}{frame.before_answer}{_ANSWER}{frame.end}")
        added = tokenizer.added_tokens_decoder
        special = {token for token in added if added[token].special} | set(tokenizer.all_special_ids)
        ends = [place for place in range(len(self._before_answer), len(whole)) if whole[place] in special]
        if not ends:
            raise ModelError(
                f"{self._whose} does not end the assistant's turn with a special token, so a generated answer would have no"
                " end. Use another model."
            )
        self.end: list[int] = whole[ends[0] :]
        self.end_token = self.end[0]
        prompt, _ = self.prompt(_USER)
        if prompt + self.answer(_ANSWER) + self.end != self._tokens(self._rendered(_USER, system_prompt, _ANSWER)):
            raise ModelError(
                f"{self._whose} cannot be used: a prompt and its answer have other tokens together than apart. Use another"
                " model."
            )
        self.largest_token = max(prompt + self.end)

    def prompt(
        self, text: str, system: str = "", span: tuple[int, int] | None = None, most: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Tokenize a prompt, up to where the answer begins.

        Args:
            text: text of the user's turn.
            system: text that is added to the system prompt.
            span: characters of `system` or, if that is empty, of `text`.
            most: maximum number of tokens; a longer user's text loses its beginning. None for no limit.

        Returns:
            The tokens, and for each 1 if it shares a character with the span, else 0.

        Raises:
            ConfigError: `most` tokens are too few even without the user's text.
            ModelError: the template does not take a system prompt.
        """
        whole_system = f"{self._system_prompt} {system}".strip()
        frame = self._frame(bool(whole_system))
        before = f"{frame.before_system}{whole_system}"
        start = len(before) + len(frame.before_user)
        encoded = self._tokenizer(
            f"{before}{frame.before_user}{text}{frame.after_user}", add_special_tokens=False, return_offsets_mapping=True
        )
        tokens, places = encoded["input_ids"], encoded["offset_mapping"]
        shift = len(before) - len(system) if system else start
        first, last = (shift + place for place in span) if span else (0, 0)
        in_span = [int(begin < last and first < end) for begin, end in places]
        surplus = 0 if most is None else max(0, len(tokens) - most)
        cut = [place for place, (begin, end) in enumerate(places) if start <= begin and end <= start + len(text)][:surplus]
        if len(cut) < surplus:
            raise ConfigError(
                f"model.max_length is {most}, but a prompt has {len(tokens) - len(cut)} tokens without the user's text: those"
                " of the chat template. Raise model.max_length."
            )
        kept = [place for place in range(len(tokens)) if not cut or not cut[0] <= place <= cut[-1]]
        return [tokens[place] for place in kept], [in_span[place] for place in kept]

    def _answer(self, text: str) -> list[int]:
        """Tokenize the text of the assistant's turn, without the turn's end."""
        frame = self._frame(bool(self._system_prompt))
        tokens = self._tokens(f"{frame.after_user}{frame.before_answer}{text}{frame.end}")
        return tokens[len(self._before_answer) : -len(self.end)]

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, *texts: str | None, **options: Any) -> str:
        try:
            return render(self._tokenizer, *texts, **options)  # type: ignore[arg-type]
        except Exception as error:  # a template is a program, which raises errors of its own
            what = "takes no system prompt" if len(texts) > 1 and texts[1] else "cannot be used"
            raise ModelError(f"{self._whose} {what}: {first_line(error)}") from error

    def _read_frame(self, has_system: bool) -> _Frame:
        """Find what the template writes around the texts.

        Raises:
            ModelError: the template cannot be used.
        """
        system = _SYSTEM if has_system else ""
        prompt, whole = self._rendered(_USER, system), self._rendered(_USER, system, _ANSWER)
        before, user, after_user = prompt.partition(_USER)
        before_system, marked, before_user = before.partition(_SYSTEM) if has_system else ("", "", before)
        if not user or _USER in after_user:
            raise ModelError(f"{self._whose} leaves out, changes or repeats the user's text. Use another model.")
        if has_system and (not marked or _SYSTEM in before_user):
            raise ModelError(
                f"{self._whose} takes no system prompt: it leaves it out, changes or repeats it. Use another model."
            )
        rest = whole.removeprefix(prompt)
        if rest == whole or not rest.lstrip().startswith(_ANSWER):
            if prompt == self._rendered(_USER, system, add_generation_prompt=False):
                raise ModelError(
                    f"{self._whose} has no generation prompt: it ignores add_generation_prompt, so that nothing says where an"
                    " answer begins. Add it to the template, or use another model."
                )
            raise ModelError(
                f"{self._whose} cannot be used: an answer does not follow its generation prompt, as in models that always"
                " think. Use another model."
            )
        before_answer, _, end = rest.partition(_ANSWER)
        return _Frame(before_system, before_user, after_user, before_answer, end)
