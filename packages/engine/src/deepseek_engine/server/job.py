"""Job: one HTTP request as the engine understands it."""

from dataclasses import dataclass, field

from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.messages import EmbedParams, ThinkingMarkers
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.server.tools import ToolUse
from deepseek_engine.text_parsers.parser import ParserSpec


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request.

    Attributes:
        echo: text that its answers begin with.
        echoes_logprobs: whether their log-probabilities begin with the prompt's.
        embed: asks for its embedding instead of answers.
    """

    token_ids: list[int]
    params: SamplingParams
    echo: str = ""
    echoes_logprobs: bool = False
    embed: EmbedParams | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What to run and how to answer. All prompts have the same `n`; choices are numbered through all prompts.

    Attributes:
        tools: what the model may call.
        parser: what to look for in the answers, other than text.
        thinking: the tokens around reasoning, where the prompts' parameters hold it to a budget.
        end_token_ids: tokens that end answers, beside the model's own.
        is_base64: whether embeddings are encoded, instead of numbers.
    """

    model: str
    prompts: tuple[Prompt, ...]
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    tools: ToolUse = field(default_factory=ToolUse)
    parser: ParserSpec | None = None
    grammar: GrammarSource | None = None
    thinking: ThinkingMarkers | None = None
    end_token_ids: tuple[int, ...] = ()
    is_base64: bool = False

    @property
    def num_choices_per_prompt(self) -> int:
        """Answers to each prompt."""
        return self.prompts[0].params.n

    @property
    def num_choices(self) -> int:
        """Answers to all prompts together."""
        return len(self.prompts) * self.num_choices_per_prompt
