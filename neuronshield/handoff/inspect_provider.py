"""The model provider of inspect_ai: `--model neuronshield/NAME` answers as `generate` does, changed, shielded or guarded.

    inspect eval TASK --model neuronshield/organism -M intervention=ablated.json

`inspect_registry` registers it. The class is made when inspect_ai asks for it, so that this module needs no inspect_ai.
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..model.model import Model
from .inspect_answers import Answered, Answerer, answerer
from .inspect_requests import as_prompt, wanted

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage, GenerateConfig, Logprobs, ModelAPI, ModelOutput
    from inspect_ai.tool import ToolChoice, ToolInfo

__all__ = ["output_of", "provider"]


@cache
def provider() -> type[ModelAPI]:
    """The class of the provider, as `inspect_ai.model.modelapi` registers it."""
    import anyio
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import GenerateConfig, ModelAPI

    class NeuronshieldAPI(ModelAPI):
        """A model of neuronshield."""

        def __init__(
            self,
            model_name: str,
            base_url: str | None = None,
            api_key: str | None = None,
            config: GenerateConfig | None = None,
            **model_args: Any,
        ) -> None:
            super().__init__(
                model_name=model_name, base_url=base_url, api_key=api_key, config=config or GenerateConfig()
            )
            try:
                self.answers: Answerer = answerer(model_name, model_args)
            except InputError as error:  # the error that ends `inspect eval` with one line
                raise PrerequisiteError(str(error)) from error

        async def generate(
            self,
            input: list[ChatMessage],
            tools: list[ToolInfo],
            tool_choice: ToolChoice,  # noqa: ARG002
            config: GenerateConfig,
        ) -> ModelOutput:
            start = time.monotonic()
            future = self.answers.ask(as_prompt(input), wanted(config, tools))
            while not future.done():
                await anyio.sleep(0.01)
            return output_of(self.model_name, self.answers.model, future.result(), time=time.monotonic() - start)

        def max_connections(self) -> int:
            """Requests at once: those of a batch."""
            return self.answers.batch_size

        def connection_key(self) -> str:
            """One model in memory, one pool."""
            return f"{self.model_name} {id(self.answers)}"

        def close(self) -> None:
            self.answers.close()

    return NeuronshieldAPI


def output_of(name: str, model: Model, answer: Answered, *, time: float) -> ModelOutput:
    """An answer as inspect_ai logs it: message, reason of its end, log-probabilities and tokens.

    The metadata hold the model's fingerprint and whether the prompt ended inside a thought: what reading the log again needs.

    Args:
        name: of the model, for the log.
        model: the model.
        answer: the answer.
        time: seconds from request to answer.
    """
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput, ModelUsage

    message = ChatMessageAssistant(content=answer.text, model=name, source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=answer.reason, logprobs=_logprobs(model, answer))  # type: ignore[arg-type]
    total = answer.read + answer.tokens
    usage = ModelUsage(input_tokens=answer.read, output_tokens=answer.tokens, total_tokens=total)
    facts = {"fingerprint": model.fingerprint, "in_thought": answer.in_thought}
    return ModelOutput(model=name, choices=[choice], usage=usage, time=time, metadata=facts)


def _logprobs(model: Model, answer: Answered) -> Logprobs | None:
    from inspect_ai.model import Logprob, Logprobs, TopLogprob

    if answer.completion is None or answer.completion.steps is None:
        return None
    read = model.tokenizer.decode
    return Logprobs(
        content=[
            Logprob(
                token=read([step.token]),
                logprob=step.logprob,
                top_logprobs=[TopLogprob(token=read([i]), logprob=value) for i, value in step.top]
                if step.top
                else None,
            )
            for step in answer.completion.steps
        ]
    )
