"""Qwen3's forward pass over packed tokens, giving the last hidden state of each row.

The weights are a checkpoint's, loaded by transformers; the arithmetic is that of its Qwen3Model.
What differs is what is left out: tokens that several rows begin with run once, no matrix product
sees padding, and in the last layer only positions that are read go on after keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from .attention import (
    Packing,
    attend_blocks,
    attend_last,
    attend_sdpa,
    offsets,
    packed_attention,
)
from .batching import group_lengths
from .linear import PackedLinear, PlainLinear, packs


@dataclass(eq=False)
class Prefix:
    """Keys and values, per layer [kv_heads, length, head_dim], of tokens that rows begin with."""

    length: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


@dataclass(eq=False)
class Segment:
    """Tokens to run after a prefix.

    With `keep`, their keys and values (after the prefix's own) fill it and no hidden state is
    given: later segments of the same pass, and later passes, may then begin with it.
    """

    ids: Sequence[int]
    prefix: Prefix | None = None
    keep: Prefix | None = None

    @property
    def start(self) -> int:
        """Position of the first token."""
        return self.prefix.length if self.prefix else 0


class Network(Protocol):
    """Runs one forward pass."""

    bytes_per_token: int
    """What a prefix holds of each token; 0 where prefixes cannot be kept."""

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Return float32 [segments that keep nothing, hidden] on the CPU, in order."""


# Those that turn a position by the same angle in every text.
_FIXED_ROPES = ("default", "linear", "yarn", "llama3")


def _rope_kind(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type", rope.get("type", "default")))


class TransformersNetwork:
    """The forward pass of transformers: for attention or configurations that are its own."""

    bytes_per_token = 0

    def __init__(self, model: Any) -> None:
        self._model = model
        # Other kinds turn all positions by the longest text they are run with.
        self._one_by_one = _rope_kind(model.config) not in _FIXED_ROPES

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Run the segments; see `Network`."""
        if self._one_by_one:
            return torch.cat([self._padded([segment]) for segment in segments])
        return self._padded(segments)

    def _padded(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Pad on the right and give no mask: causality hides what stands after a real token."""
        last = torch.tensor([len(segment.ids) - 1 for segment in segments])
        ids = torch.zeros(len(segments), int(last.max()) + 1, dtype=torch.long)
        for i, segment in enumerate(segments):
            ids[i, : len(segment.ids)] = torch.tensor(segment.ids)
        device = self._model.device
        hidden = self._model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        rows: torch.Tensor = hidden[torch.arange(len(segments)), last.to(device)]
        return rows.float().cpu()


# --- layers ----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Layer:
    input_norm: torch.Tensor
    attention_norm: torch.Tensor
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    # In the last layer most positions need no query: there it stands apart.
    query: Any
    query_key_value: Any
    output: Any
    gate: Any
    up: Any
    down: Any


@dataclass(eq=False)
class _Group:
    """Segments of like length after the same prefix, whose attention runs together."""

    prefix: Prefix | None
    keep: Prefix | None
    count: int
    length: int
    start: int
    tokens: int
    lengths: torch.Tensor
    # Rows of the packed tokens that make the padded [count * length], and the way back; None
    # where they are the same.
    padded: torch.Tensor | None
    packed: torch.Tensor | None
    # Where the segments stand among the wanted ones; empty for a segment to keep.
    wanted: torch.Tensor

    @property
    def offset(self) -> int:
        return self.prefix.length if self.prefix else 0


@dataclass(eq=False)
class _Chain:
    """All segments of a pass for attention that needs no padding."""

    packing: Packing
    positions: torch.Tensor
    # Prefixes kept from earlier passes, whose keys stand behind this pass's own; which of them
    # all each row sees, in order; and which make the prefixes that this pass is to fill.
    kept: list[Prefix]
    seen: torch.Tensor
    fills: list[tuple[Prefix, torch.Tensor]]


class PackedNetwork:
    """Qwen3 over packed tokens."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a transformers Qwen3Model, which is of no use afterwards."""
        config = model.config
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_dim = config.head_dim
        self._hidden = config.hidden_size
        self._eps = config.rms_norm_eps
        self._embed = model.embed_tokens.weight.detach()
        self._norm = model.norm.weight.detach()
        self._rotary = model.rotary_emb
        self._tables = torch.empty(2, 0, self._head_dim)
        # On Apple's GPUs causal and grouped attention were wrong in several versions of torch.
        by_blocks = self._embed.device.type in ("cpu", "mps")
        self._attend = attend_blocks if by_blocks else attend_sdpa
        self._attend_packed = packed_attention(
            self._heads, self._kv_heads, self._embed.new_empty(self._head_dim)
        )
        linear = PackedLinear if packs(model.layers[0].mlp.gate_proj.weight) else PlainLinear
        self._layers = []
        count = len(model.layers)
        for i in range(count):
            # One layer at a time, and let go of: the weights are never there twice.
            self._layers.append(_take(model.layers[i], linear, last=i == count - 1))
            model.layers[i] = torch.nn.Identity()
        self.bytes_per_token = (
            2 * count * self._kv_heads * self._head_dim * self._embed.element_size()
        )

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether this class knows all that a Qwen3Model does."""
        config = model.config
        products = (
            module
            for layer in model.layers
            for part in (layer.self_attn, layer.mlp)
            for name, module in part.named_children()
            if name.endswith("_proj")
        )
        return (
            config.hidden_act == "silu"
            and not getattr(config, "use_sliding_window", False)
            and _rope_kind(config) in _FIXED_ROPES
            # Quantised ones and adapters compute something else; Qwen3 has no biases.
            and all(type(m) is torch.nn.Linear and m.bias is None for m in products)
        )

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Run the segments; see `Network`."""
        groups, ids, last, order = self._plan(segments)
        chain = self._chain([segments[i] for i in order]) if self._attend_packed else None
        x = F.embedding(ids, self._embed)
        tables = self._angles(max(group.offset + group.length for group in groups))
        for index, layer in enumerate(self._layers[:-1]):
            h = F.rms_norm(x, (self._hidden,), layer.input_norm, self._eps)
            x_qkv = layer.query_key_value(h)
            if chain:
                a = self._packed_attention(layer, index, x_qkv, chain, tables)
            else:
                a = self._attention(layer, index, x_qkv, groups, tables)
            x = self._feed_forward(layer, layer.output.plus(a, x))
        layer = self._layers[-1]
        h = F.rms_norm(x, (self._hidden,), layer.input_norm, self._eps)
        keys_values, queries = layer.query_key_value(h), layer.query(h[last])
        a = self._last_attention(layer, keys_values, queries, groups, tables)
        x = self._feed_forward(layer, layer.output.plus(a, x[last]))
        return F.rms_norm(x.float(), (self._hidden,), self._norm.float(), self._eps).cpu()

    def _feed_forward(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        h = F.rms_norm(x, (self._hidden,), layer.attention_norm, self._eps)
        y: torch.Tensor = layer.down.plus(layer.up.times(h, layer.gate.silu(h)), x)
        return y

    def _plan(
        self, segments: Sequence[Segment]
    ) -> tuple[list[_Group], torch.Tensor, torch.Tensor, list[int]]:
        """Return the groups of attention, the packed ids, the rows wanted of them, the order."""
        device = self._embed.device
        places: dict[int, int] = {}
        for i, segment in enumerate(segments):
            if segment.keep is None:
                places[i] = len(places)
        # Prefixes first, in their order: each may be the beginning of the next.
        members = [[i] for i, segment in enumerate(segments) if segment.keep is not None]
        by_prefix: dict[int, list[int]] = {}
        for i in places:
            by_prefix.setdefault(id(segments[i].prefix), []).append(i)
        for indices in by_prefix.values():
            lengths = [len(segments[i].ids) for i in indices]
            members += [[indices[j] for j in group] for group in group_lengths(lengths)]
        groups: list[_Group] = []
        ids: list[int] = []
        last = [0] * len(places)
        for indices in members:
            first = segments[indices[0]]
            lengths = [len(segments[i].ids) for i in indices]
            length, start = max(lengths), len(ids)
            padded: list[int] = []
            packed: list[int] = []
            for j, i in enumerate(indices):
                at, size = len(ids), lengths[j]
                padded += [*range(at, at + size), *[at] * (length - size)]
                packed += range(j * length, j * length + size)
                ids += segments[i].ids
                if i in places:
                    last[places[i]] = len(ids) - 1
            even = len(packed) == len(padded)
            groups.append(
                _Group(
                    first.prefix,
                    first.keep,
                    len(indices),
                    length,
                    start,
                    sum(lengths),
                    torch.tensor(lengths, device=device),
                    None if even else torch.tensor(padded, device=device),
                    None if even else torch.tensor(packed, device=device),
                    torch.tensor(
                        [places[i] for i in indices if i in places],
                        dtype=torch.long,
                        device=device,
                    ),
                )
            )
        order = [i for indices in members for i in indices]
        return groups, torch.tensor(ids, device=device), torch.tensor(last, device=device), order

    def _chain(self, segments: Sequence[Segment]) -> _Chain:
        """Plan attention without padding over segments in packed order."""
        device = self._embed.device
        own, tokens, kept_tokens = [], 0, 0
        for segment in segments:
            own.append(torch.arange(tokens, tokens + len(segment.ids)))
            tokens += len(segment.ids)
        # Where each prefix's keys are: among this pass's own, or behind them.
        rows: dict[Prefix | None, torch.Tensor] = {None: torch.arange(0)}
        kept: list[Prefix] = []
        fills = []
        seen = []
        for segment, mine in zip(segments, own, strict=True):
            prefix = segment.prefix
            if prefix is not None and prefix not in rows:
                start = tokens + kept_tokens
                rows[prefix] = torch.arange(start, start + prefix.length)
                kept.append(prefix)
                kept_tokens += prefix.length
            seen.append(torch.cat([rows[prefix], mine]))
            if segment.keep is not None:
                rows[segment.keep] = seen[-1]
                fills.append((segment.keep, seen[-1].to(device)))
        lengths, key_lengths = [len(x) for x in own], [len(x) for x in seen]
        packing = Packing(
            offsets(lengths, device), offsets(key_lengths, device), max(lengths), max(key_lengths)
        )
        positions = [
            torch.arange(segment.start, segment.start + len(segment.ids)) for segment in segments
        ]
        return _Chain(
            packing, torch.cat(positions).to(device), kept, torch.cat(seen).to(device), fills
        )

    def _angles(self, length: int) -> torch.Tensor:
        """Return cosines and sines of at least `length` positions, float32 [2, length, head_dim]."""
        if self._tables.shape[1] < length:
            positions = torch.arange(-(-length // 512) * 512, device=self._embed.device)
            cos, sin = self._rotary(self._embed.new_empty(0, dtype=torch.float32), positions[None])
            self._tables = torch.stack([cos[0], sin[0]]).float()
        return self._tables[:, :length]

    def _turn(self, weight: torch.Tensor, tables: torch.Tensor, scale: float) -> list[torch.Tensor]:
        """Join a head norm's weights with the rotation: what stands before each half, twice."""
        half = self._head_dim // 2
        w = weight.float() * scale
        cos, sin = tables
        straight = cos * w
        crossed = sin * torch.roll(w, half)
        dtype = self._embed.dtype
        return [straight.to(dtype)[:, None], crossed.to(dtype)[:, None]]

    def _rotate(
        self, x: torch.Tensor, turn: list[torch.Tensor], out: torch.Tensor, start: int = 0
    ) -> None:
        """Write heads, turned by their positions, into `out`; both [count, length, heads, dim]."""
        half = self._head_dim // 2
        straight, crossed = (table[..., start : start + x.shape[1], :, :] for table in turn)
        torch.mul(x, straight, out=out)
        out[..., :half].addcmul_(x[..., half:], crossed[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], crossed[..., half:])

    def _unit(self, x: torch.Tensor) -> torch.Tensor:
        """Divide each head by its root mean square, computed in float32."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(self._head_dim).add_(self._eps).rsqrt_()
        unit: torch.Tensor = (x * scale).to(x.dtype)
        return unit

    def _keys_values(
        self,
        layer_keys: torch.Tensor,
        values: torch.Tensor,
        group: _Group,
        turn: list[torch.Tensor],
        index: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values [count, kv_heads, prefix + length, head_dim]."""
        offset = group.offset
        shape = (group.count, self._kv_heads, offset + group.length, self._head_dim)
        k, v = values.new_empty(shape), values.new_empty(shape)
        if group.prefix is not None:
            k[:, :, :offset] = group.prefix.keys[index]
            v[:, :, :offset] = group.prefix.values[index]
        self._rotate(layer_keys, turn, k[:, :, offset:].transpose(1, 2), offset)
        v[:, :, offset:].transpose(1, 2).copy_(values)
        if group.keep is not None:
            group.keep.keys.append(k[0])
            group.keep.values.append(v[0])
        return k, v

    def _split(
        self, x: torch.Tensor, group: _Group, heads: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Cut a group's rows out of packed ones, by heads: each [count, length, heads, head_dim]."""
        if group.padded is None:
            x = x[group.start : group.start + group.count * group.length]
        else:
            x = x[group.padded]
        x = x.view(group.count, group.length, -1, self._head_dim)
        return x.split_with_sizes(list(heads), dim=2)

    def _attention(
        self, layer: _Layer, index: int, x: torch.Tensor, groups: list[_Group], tables: torch.Tensor
    ) -> torch.Tensor:
        """Attend from every position; queries, keys and values side by side to [tokens, ...]."""
        heads, kv_heads = self._heads, self._kv_heads
        query_turn = self._turn(layer.query_norm, tables, self._head_dim**-0.5)
        key_turn = self._turn(layer.key_norm, tables, 1.0)
        out = x.new_empty(len(x), heads * self._head_dim)
        for group in groups:
            qk, values = self._split(x, group, (heads + kv_heads, kv_heads))
            qk = self._unit(qk)
            k, v = self._keys_values(qk[:, :, heads:], values, group, key_turn, index)
            q = x.new_empty(group.count, heads, group.length, self._head_dim)
            self._rotate(qk[:, :, :heads], query_turn, q.transpose(1, 2), group.offset)
            rows = out[group.start : group.start + group.tokens]
            attended = self._attend(q, k, v).transpose(1, 2)
            if group.packed is None:
                rows.view(attended.shape).copy_(attended)
            else:
                torch.index_select(attended.reshape(-1, rows.shape[1]), 0, group.packed, out=rows)
        return out

    def _packed_attention(
        self, layer: _Layer, index: int, x: torch.Tensor, chain: _Chain, tables: torch.Tensor
    ) -> torch.Tensor:
        """Do as `_attention` does, without padding and without a step per group."""
        heads, kv_heads = self._heads, self._kv_heads
        x = x.view(1, len(x), -1, self._head_dim)
        unit = self._unit(x[:, :, : heads + kv_heads])
        q, k = torch.empty_like(unit[:, :, :heads]), torch.empty_like(unit[:, :, heads:])
        turns = [
            [table[chain.positions] for table in self._turn(weight, tables, scale)]
            for weight, scale in (
                (layer.query_norm, self._head_dim**-0.5),
                (layer.key_norm, 1.0),
            )
        ]
        self._rotate(unit[:, :, :heads], turns[0], q)
        self._rotate(unit[:, :, heads:], turns[1], k)
        keys = [k[0], *(prefix.keys[index].transpose(0, 1) for prefix in chain.kept)]
        values = [
            x[0, :, heads + kv_heads :],
            *(prefix.values[index].transpose(0, 1) for prefix in chain.kept),
        ]
        all_keys, all_values = torch.cat(keys), torch.cat(values)
        for prefix, rows in chain.fills:
            prefix.keys.append(all_keys[rows].transpose(0, 1))
            prefix.values.append(all_values[rows].transpose(0, 1))
        assert self._attend_packed is not None
        gathered = self._attend_packed(
            q[0], all_keys[chain.seen], all_values[chain.seen], chain.packing
        )
        return gathered.flatten(1)

    def _last_attention(
        self,
        layer: _Layer,
        x: torch.Tensor,
        queries: torch.Tensor,
        groups: list[_Group],
        tables: torch.Tensor,
    ) -> torch.Tensor:
        """Attend from the last position of each wanted segment only."""
        kv_heads, index = self._kv_heads, len(self._layers) - 1
        query_turn = self._turn(layer.query_norm, tables, self._head_dim**-0.5)
        key_turn = self._turn(layer.key_norm, tables, 1.0)
        unit = self._unit(queries.view(len(queries), 1, self._heads, self._head_dim))
        out = torch.empty_like(queries)
        for group in groups:
            keys, values = self._split(x, group, (kv_heads, kv_heads))
            k, v = self._keys_values(self._unit(keys), values, group, key_turn, index)
            if group.keep is not None:
                continue
            ends = group.offset + group.lengths - 1
            turn = [table[ends][:, None] for table in query_turn]
            q = torch.empty_like(unit[group.wanted])
            self._rotate(unit[group.wanted], turn, q)
            out[group.wanted] = attend_last(q[:, 0], k, v, ends).flatten(1)
        return out


def _take(layer: Any, linear: Any, last: bool) -> _Layer:
    """Read one layer of transformers' model."""
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v = (
        module.weight.detach() for module in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return _Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        attention_norm=layer.post_attention_layernorm.weight.detach(),
        query_norm=attention.q_norm.weight.detach(),
        key_norm=attention.k_norm.weight.detach(),
        query=linear(q) if last else None,
        query_key_value=linear(torch.cat([k, v] if last else [q, k, v])),
        output=linear(attention.o_proj.weight.detach()),
        gate=linear(mlp.gate_proj.weight.detach()),
        up=linear(mlp.up_proj.weight.detach()),
        down=linear(mlp.down_proj.weight.detach()),
    )
