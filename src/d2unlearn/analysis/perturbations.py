"""What may change between calibration and use without anything being unlearned: each as a context in which answers are read.

A threshold that was set before has to mean the same afterwards. A constant added to all logits changes no probability, so a
sound detector should not notice it; the others change probabilities, and most of them the answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.analysis.detectors import QUANTITIES
from d2unlearn.analysis.recorder import Answering, AnswerTraces, read_answers
from d2unlearn.data.template import Template
from d2unlearn.observation import causal_model
from d2unlearn.rounding import rounded_to_integers
from d2unlearn.schema import Example

SHIFT = 10.0
"""nats, added to every logit."""
LEVEL_SPREAD = 5.0
"""nats, standard deviation of a constant that is drawn for each position and added to all of its logits."""
HEAT = 1.5
"""What logits are divided by."""
OTHER_TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m['role'] == 'user' else '' }}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a tokenizer that has no chat template of its own; one that has falls back to the plain format."""


@dataclass(frozen=True)
class ModelUnderTest:
    """What answers, the tokenizer that renders its prompts, and how it answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    how: Answering

    def traces(self, examples: Sequence[Example], name: str = "") -> AnswerTraces:
        """What every detector needs of the answers to the examples' prompts. `name`: of the progress bar, none without."""
        return read_answers(self.model, self.prompts(examples), QUANTITIES, self.how, name=name)

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        template = Template(self.tokenizer)
        return [template.prompt_ids(example.prompt) for example in examples]

    def token_text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


Perturbed = AbstractContextManager[ModelUnderTest]


@dataclass(frozen=True)
class Perturbation:
    """What was done, in words, and the context in which a model is so perturbed; it is as before afterwards."""

    label: str
    applied: Callable[[ModelUnderTest], Perturbed]


def shifted(given: ModelUnderTest) -> Perturbed:
    """A constant added to every logit: the same probabilities, another energy."""
    return _with_logits(given, lambda logits: logits + SHIFT)


def unlevelled(given: ModelUnderTest) -> Perturbed:
    """At each position another constant added to every logit: the same probabilities, energies that say nothing."""
    generator = torch.Generator().manual_seed(0)

    def moved(logits: Tensor) -> Tensor:
        constants = LEVEL_SPREAD * torch.randn(*logits.shape[:-1], 1, generator=generator)
        return logits + constants.to(logits)

    return _with_logits(given, moved)


def heated(given: ModelUnderTest) -> Perturbed:
    """Every logit divided by a temperature; greedy answers stay the same."""
    return _with_logits(given, lambda logits: logits / HEAT)


def sampled(given: ModelUnderTest) -> Perturbed:
    """Answers drawn at temperature 1 instead of the most likely ones."""
    return nullcontext(replace(given, how=replace(given.how, sampled=True)))


@contextmanager
def quantised(given: ModelUnderTest) -> Iterator[ModelUnderTest]:
    """The layers' linear weights rounded to int8 with one scale an output row and multiplied back: what int8 weights compute.

    The LM head and embeddings stay, as common int8 formats leave them. Holds a copy of those weights meanwhile.
    """
    causal = causal_model(given.model)
    head = causal.get_output_embeddings()  # type: ignore[operator]
    before = {part: part.weight.data for part in causal.modules() if isinstance(part, nn.Linear) and part is not head}
    try:
        for part, weight in before.items():
            part.weight.data = rounded_to_integers(weight, 8)
        yield given
    finally:
        for part, weight in before.items():
            part.weight.data = weight


def rendered_otherwise(given: ModelUnderTest) -> Perturbed:
    """Prompts in another template than the one that the model was trained with."""
    tokenizer = copy.deepcopy(given.tokenizer)
    tokenizer.chat_template = None if tokenizer.chat_template is not None else OTHER_TEMPLATE
    return nullcontext(replace(given, tokenizer=tokenizer))


@contextmanager
def _with_logits(given: ModelUnderTest, change: Callable[[Tensor], Tensor]) -> Iterator[ModelUnderTest]:
    """Let a function change the logits that the model returns, before anybody reads them."""

    def hook(_module: nn.Module, _arguments: object, output: Any) -> Any:
        output.logits = change(output.logits)
        return output

    with causal_model(given.model).register_forward_hook(hook):
        yield given


PERTURBATIONS: Mapping[str, Perturbation] = {
    "as calibrated": Perturbation("nothing changed", nullcontext),
    "constant shift": Perturbation(f"{SHIFT:g} added to every logit", shifted),
    "noisy level": Perturbation(f"at each position a constant (s.d. {LEVEL_SPREAD:g}) added to all its logits", unlevelled),
    "temperature": Perturbation(f"every logit divided by {HEAT:g}", heated),
    "sampled": Perturbation("answers sampled at temperature 1", sampled),
    "int8": Perturbation("the layers' weights rounded to int8, one scale a row", quantised),
    "other template": Perturbation("prompts in another template", rendered_otherwise),
}
"""Every perturbation, none first."""
