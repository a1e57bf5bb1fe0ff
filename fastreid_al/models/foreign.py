"""Finds the weights of a backbone in the files of other code bases, under whatever names.

A file holds tensors by name, nested in dictionaries. The backbone's own names follow a prefix, such
as `module.encoder_q.`, of any number of wrappers: DataParallel (`module.`), torch.compile
(`_orig_mod.`), Lightning (`state_dict`, `model.`), strong baseline and TransReID (`base.`),
fast-reid (`model`, `backbone.`), MoCo and LUPerson (`encoder_q.`), DINO (`teacher.`), layumi
(`model.`), timm. SpCL and Cluster Contrast put the backbone's layers into a Sequential, which
numbers them: `base.0.weight` is `conv1.weight`.

A prefix fits if *every* tensor of the backbone follows it in the right shape, and nothing else of
the backbone's layers does; a deeper network of the same kind therefore does not fit. Only counters
of BatchNorm and the exponent of a pooling may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import printable

#: Parts of names that wrappers put anywhere.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Parts of a prefix that name the network to take where a file holds several: the mean of weights
#: over steps, and the encoder that is trained.
_PREFERRED = frozenset(
    {
        *("state_dict_ema", "model_ema", "ema", "ema_model", "module_ema", "teacher"),
        *("encoder_q", "query_encoder", "online_encoder", "online_network"),
    }
)
#: Parts that name the other one.
_SECOND = frozenset(
    {
        *("student", "encoder_k", "key_encoder", "momentum_encoder", "target_encoder"),
        *("target_network", "optimizer", "optimizer_states"),
    }
)
#: How deep dictionaries are nested.
_DEEPEST = 8
#: Names that a message lists.
_LISTED = 3


class Found(NamedTuple):
    """Weights of a backbone in a file.

    Args:
        state: Tensors by the backbone's own names.
        prefix: What stood before these names.
        left_out: Names in the file of the tensors that are not used.
    """

    state: dict[str, Tensor]
    prefix: str
    left_out: list[str]


class _Match(NamedTuple):
    """What follows a prefix: the file's name of each of the backbone's tensors."""

    prefix: str
    names: dict[str, str]
    #: Names of the file that belong to the backbone's layers and that it does not have.
    extra: list[str]

    def misses(self, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
        """Names that the file lacks, or has in another shape or kind."""
        return [
            name
            for name, own in expected.items()
            if not _may_be_missing(name)
            and not (name in self.names and fits(state[self.names[name]], own))
        ]


def flatten_tensors(content: Any, prefix: str = "", depth: int = _DEEPEST) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries by their joined names."""
    found: dict[str, Tensor] = {}
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif depth:
            found |= flatten_tensors(value, f"{prefix}{name}.", depth - 1)
    return found


def find_backbone(state: Mapping[str, Tensor], backbone: nn.Module) -> Found:
    """Find the weights of a backbone.

    Args:
        state: Tensors of a file, by name.
        backbone: The backbone that is to get them.

    Raises:
        ValueError: No prefix fits; the message has the numbers of tensors, and the names that were
            looked for and found.
    """
    expected = backbone.state_dict()
    matches = [*_plain_matches(state, expected), *_numbered_matches(state, expected)]
    fitting = [m for m in matches if not m.extra and not m.misses(expected, state)]
    if not fitting:
        raise ValueError(_explain(matches, expected, state))
    best = min(fitting, key=lambda match: _rank(match.prefix))
    used = set(best.names.values())
    left_out = [n for n in state if n not in used and not n.endswith("num_batches_tracked")]
    return Found({own: state[name] for own, name in best.names.items()}, best.prefix, left_out)


def _plain_matches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[_Match]:
    """Yield what follows each prefix after which a name of the backbone stands."""
    layers = {name.split(".")[0] for name in expected}
    by_prefix: dict[str, tuple[dict[str, str], list[str]]] = {}
    skipped = _WRAPPERS - {part for name in expected for part in name.split(".")}
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if parts[start] in layers:
                own = ".".join(part for part in parts[start:] if part not in skipped)
                prefix = ".".join([*parts[:start], ""])
                names, extra = by_prefix.setdefault(prefix, ({}, []))
                if own in expected:
                    names[own] = name
                else:
                    extra.append(name)
    for prefix, (names, extra) in by_prefix.items():
        if names:
            inside = {own.split(".")[0] for own in names}
            # A layer of the same name that the backbone has nothing of is another one: a `fc`.
            beyond = [e for e in extra if e[len(prefix) :].split(".")[0] in inside]
            yield _Match(prefix, names, beyond)


def _numbered_matches(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> Iterator[_Match]:
    """Yield what follows each prefix after which numbers stand in place of layers."""
    layers = list(dict.fromkeys(n.split(".")[0] for n in expected if not _may_be_missing(n)))
    numbers: dict[str, set[int]] = {}
    for name in state:
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if part.isascii() and part.isdigit() and len(part) < 4:
                numbers.setdefault(".".join([*parts[:place], ""]), set()).add(int(part))
    for prefix, found in numbers.items():
        if len(found) >= len(layers):
            layer_of = dict(zip(sorted(found), layers, strict=False))
            renamed = {}
            for name, tensor in state.items():
                number, _, rest = name[len(prefix) :].partition(".")
                if name.startswith(prefix) and number.isdigit() and int(number) in layer_of:
                    renamed[f"{layer_of[int(number)]}.{rest}"] = (name, tensor)
            names = {own: name for own, (name, _) in renamed.items() if own in expected}
            extra = [name for own, (name, _) in renamed.items() if own not in expected]
            yield _Match(prefix, names, extra)


def _may_be_missing(name: str) -> bool:
    """Whether a file may lack a tensor: counters that nothing reads, and the power of a pooling."""
    return name.endswith("num_batches_tracked") or name.startswith("avgpool.")


def fits(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor of a file can take the place of the backbone's own."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    # Some files hold the counters of BatchNorm, which are whole numbers, as floats.
    kind = tensor.is_floating_point() or not own.is_floating_point()
    return dense and kind and not tensor.is_quantized and tensor.shape == own.shape


def _rank(prefix: str) -> int:
    parts = set(prefix.split("."))
    if parts & _SECOND:
        return 2
    return 0 if parts & _PREFERRED else 1


def _explain(
    matches: list[_Match], expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> str:
    """Say what does not fit, by the prefix that comes nearest."""
    wanted = [name for name in expected if not _may_be_missing(name)]
    best = max(matches, key=lambda m: len(m.names), default=_Match("", {}, []))
    missing = best.misses(expected, state)
    parts = [f"{len(wanted) - len(missing)} of {len(wanted)} tensors fit"]
    if missing:
        looked = ", ".join(best.prefix + name for name in missing[:_LISTED])
        parts.append(f"looked for {looked}")
    shapes = [n for n in missing if n in best.names]
    if shapes:
        got = tuple(state[best.names[shapes[0]]].shape)
        parts.append(f"{shapes[0]} is {got}, expected {tuple(expected[shapes[0]].shape)}")
    if best.extra:
        parts.append(f"{len(best.extra)} further tensors of its layers are left over")
    unused = best.extra or [name for name in state if name not in set(best.names.values())]
    found = ", ".join(printable(name) for name in (unused or list(state))[:_LISTED])
    parts.append(f"found {found or 'none'}")
    return "; ".join(parts)


def summarise_names(names: list[str], prefix: str = "") -> str:
    """Count names by their first parts, the most frequent first.

    Args:
        names: The names.
        prefix: A prefix whose parts are not counted as the first.
    """
    shared = prefix.split(".")[:-1]
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        depth = 0
        while depth < min(len(shared), len(parts) - 1) and parts[depth] == shared[depth]:
            depth += 1
        counts[".".join(parts[: depth + 1]) + (".*" if len(parts) > depth + 1 else "")] += 1
    listed = [f"{printable(name)} ({count})" for name, count in counts.most_common(_LISTED + 1)]
    more = len(counts) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")
