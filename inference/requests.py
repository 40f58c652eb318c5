"""What is asked of an engine and what it answers: plain frozen values, free of jax."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy, top_k 0 keeps every token."""

    max_new_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class GenerateRequest:
    """Continue a prompt of token ids; sample tells apart several draws from the same prompt.

    `adapter` is what `Engine.attach` called the adapter that is to answer; empty for the engine's own model.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    sample: int = 0
    adapter: str = field(default="", repr=False)  # every adapter draws by the same random numbers


@dataclass(frozen=True)
class ScoreRequest:
    """Score each option (token ids) as the continuation of a prompt; `adapter` as in `GenerateRequest`."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    adapter: str = field(default="", repr=False)


@dataclass(frozen=True)
class EmbedRequest:
    """The mean of a text's last hidden states, of length one; `adapter` as in `GenerateRequest`."""

    prompt: tuple[int, ...]
    adapter: str = field(default="", repr=False)


@dataclass(frozen=True)
class HeadRequest:
    """What a model's head says of a text: a logit for each label, or a number; `adapter` as in `GenerateRequest`."""

    prompt: tuple[int, ...]
    adapter: str = field(default="", repr=False)


@dataclass(frozen=True)
class Generation:
    """A continuation without its stop string; logprob is the sum over its tokens, in nats."""

    text: str
    tokens: tuple[int, ...]
    logprob: float
    stopped: bool


@dataclass(frozen=True)
class Scores:
    """Summed log-likelihood of each option in nats, and how many tokens each has.

    `greedy` says of each whether every token of it is the one that the model finds likeliest at its place; it is empty
    where nobody asked (predictions stored before there was such a thing).
    """

    logprobs: tuple[float, ...]
    lengths: tuple[int, ...]
    greedy: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Values:
    """The numbers that an embedding or a head is made of."""

    values: tuple[float, ...]


Request = GenerateRequest | ScoreRequest | EmbedRequest | HeadRequest
Result = Generation | Scores | Values
