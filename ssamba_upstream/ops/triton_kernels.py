"""The Triton kernels of the selective scan and of the causal convolution, forward and backward.

``reference.py`` defines the computation, and ``triton.py`` calls these kernels. Importing this module imports triton.

A scan's program is one warp. It scans BLOCK neighbouring channels of one sequence, in one direction, through one chunk
of time. The state is a float32 tile (states, channels) in registers. Each thread holds all the states of one channel,
so sums over states need no communication. With ``offsets``, sequences are packed ("ragged"); otherwise they are the
entries of a batch. A chunk's *slot* is its index in every buffer with one entry per chunk. Programs never write to the
same memory, so results do not depend on the order in which they run.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


class Sequence(NamedTuple):
    """A (batch, channels, length) tensor and its strides in elements. For B and C, the channels are states."""

    data: Any
    batch: Any
    channel: Any
    time: Any


class Direction(NamedTuple):
    """Inputs of one direction of a scan. Absent parameters are None; all parameters are contiguous."""

    u: Sequence
    delta: Sequence
    A: Any  # (channels, states): A, or the logarithm of -A if LOGARITHMIC
    B: Sequence
    C: Sequence
    D: Any  # (channels,)
    delta_bias: Any  # (channels,)
    initial_state: Any  # (sequences, states, channels)
    reverse: Any


class Layout(NamedTuple):
    """Sizes shared by all directions. ``offsets`` is None, or the start of every packed sequence and the last's end."""

    offsets: Any
    sequences: Any
    length: Any  # of every sequence, unless they are packed
    channels: Any
    states: Any
    blocks: Any  # number of blocks of channels


class Gradients(NamedTuple):
    """Outputs of the backward pass of one direction."""

    u: Sequence
    delta: Sequence
    z: Any  # a Sequence, or None
    A: Any  # (slots, blocks, STATES, BLOCK)
    B: Sequence  # the first block of channels; the others follow at equal size
    C: Sequence
    block_stride: Any  # elements between two blocks of B or C
    D: Any  # (slots, channels), or None
    delta_bias: Any  # (slots, channels), or None
    initial_state: Any  # (sequences, states, channels), or None


# Elementary functions


@triton.jit
def _exponential(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + _exponential(-x))


@triton.jit
def _softplus(x):
    # max(x, 0) + log(1 + e), e = exp(-|x|), with the logarithm as 2 artanh(e / (2 + e)): rounding 1 + e would lose the
    # digits of a small e. The series ends below float32's resolution.
    e = _exponential(-tl.abs(x))
    s = e / (2.0 + e)
    w = s * s
    series = 1 / 15 + 0.0 * w
    series = series * w + 1 / 13
    series = series * w + 1 / 11
    series = series * w + 1 / 9
    series = series * w + 1 / 7
    series = series * w + 1 / 5
    series = series * w + 1 / 3
    series = series * w + 1.0
    return tl.where(x > 0, x, 0.0) + 2.0 * s * series


# Addresses


@triton.jit
def _find_sequence(slot, layout, chunk_length):
    """Return (sequence, batch entry, first position, length, first slot) for a slot's sequence.

    The slots of a packed sequence s begin at offsets[s] // chunk_length + s. This needs no table and leaves
    enough slots for any lengths. Unused slots are beyond the sequence's end.
    """
    if layout.offsets is None:
        slots_each = tl.maximum(tl.cdiv(layout.length, chunk_length), 1)
        sequence = slot // slots_each
        batch = sequence
        start = sequence * 0
        length = start + layout.length
        first_slot = sequence * slots_each
    else:
        sequence = slot * 0
        beyond = sequence + layout.sequences
        while beyond - sequence > 1:
            middle = (sequence + beyond) // 2
            if tl.load(layout.offsets + middle).to(tl.int64) // chunk_length + middle <= slot:
                sequence = middle
            else:
                beyond = middle
        batch = sequence * 0
        start = tl.load(layout.offsets + sequence).to(tl.int64)
        length = tl.load(layout.offsets + sequence + 1).to(tl.int64) - start
        first_slot = start // chunk_length + sequence
    return sequence, batch, start, length, first_slot


@triton.jit
def _sequence_slots(sequence, layout, chunk_length):
    """Return (first slot, number of chunks) of a sequence; an empty sequence has one empty chunk."""
    if layout.offsets is None:
        chunks = tl.maximum(tl.cdiv(layout.length, chunk_length), 1)
        first_slot = sequence * chunks
    else:
        start = tl.load(layout.offsets + sequence).to(tl.int64)
        end = tl.load(layout.offsets + sequence + 1).to(tl.int64)
        chunks = tl.maximum(tl.cdiv(end - start, chunk_length), 1)
        first_slot = start // chunk_length + sequence
    return first_slot, chunks


@triton.jit
def _walk(reverse, start, length, first_step):
    """Return (position of the chunk's first step, change of the position per step)."""
    sign = tl.where(reverse != 0, -1, 1).to(tl.int64)
    return start + tl.where(reverse != 0, length - 1 - first_step, first_step), sign


@triton.jit
def _rows(sequence, batch, position, lanes):
    """Return pointers to one time step of a sequence."""
    return sequence.data + (batch * sequence.batch + position * sequence.time) + lanes * sequence.channel


@triton.jit
def _track(sequence, batch, position, sign, lanes):
    """Return (pointers to the first step scanned, change of the pointers per step)."""
    return _rows(sequence, batch, position, lanes), sequence.time * sign


@triton.jit
def _read(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _parameter(parameter, channels, mask):
    """Return one number per channel, or zeros for an absent parameter."""
    if parameter is None:
        value = tl.zeros(channels.shape, tl.float32)
    else:
        value = _read(parameter + channels, mask)
    return value


@triton.jit
def _offsets(states, state_stride, channels):
    """Return a tile's offsets, (states, channels), with contiguous channels.

    The hints tell the compiler that states are not contiguous and channels not aligned. Without them it would choose a
    layout for vectorised loads, some states of some channels per thread, and convert every tile and every number per
    channel between two layouts at each step.
    """
    rows = tl.max_contiguous(states[:, None], [1, 1]) * state_stride
    return rows + tl.multiple_of(channels[None, :], [1, 1])


@triton.jit
def _exponents(A, channels, states, layout, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr):
    """Return A log2(e), (states, channels), read state by state because A's states are contiguous, see _offsets."""
    exponents = tl.zeros((STATES, BLOCK), tl.float32)
    for state in tl.static_range(STATES):
        here = channels < tl.where(state < layout.states, layout.channels, 0)
        row = _read(A + channels * layout.states + state, here)
        if LOGARITHMIC:
            row = -_exponential(row)
        exponents = tl.where(states[:, None] == state, row[None, :] * LOG2_E, exponents)
    return exponents


@triton.jit
def _at_boundary(states_of_sequences, sequence, channels, states, layout):
    """Return (pointers, mask) for an entry of a (sequences, states, channels) buffer."""
    mask = (states < layout.states)[:, None] & (channels < layout.channels)[None, :]
    entry = states_of_sequences + sequence * layout.states * layout.channels
    return entry + _offsets(states, layout.channels, channels), mask


@triton.jit
def _tile(tiles, slot, block, layout, STATES: tl.constexpr, BLOCK: tl.constexpr):
    """Return pointers to a block's tile in a (slots, blocks, STATES, BLOCK) buffer: an address plus fixed offsets."""
    entry = tiles + (slot * layout.blocks + block) * (STATES * BLOCK)
    return entry + _offsets(tl.arange(0, STATES), BLOCK, tl.arange(0, BLOCK))


@triton.jit
def _program(blocks, directions: tl.constexpr):
    """Return (block, direction, slot or sequence) of this program."""
    program = tl.program_id(0)
    others = program // blocks
    return program % blocks, others % directions, (others // directions).to(tl.int64)


@triton.jit
def _step(delta, bias, mask, SOFTPLUS: tl.constexpr):
    """Return the step size at one time step; zero outside the mask, which leaves the state unchanged."""
    step = delta.to(tl.float32) + bias
    if SOFTPLUS:
        step = _softplus(step)
    return tl.where(mask, step, 0.0)


@triton.jit
def _ahead(track, t, steps, mask):
    """Load a row in its stored dtype ahead of time: each step's loads are issued while the previous step is computed,
    so their latencies do not add up. Past the last step scanned, the last row is loaded, or nothing if there is none.
    """
    row = tl.maximum(tl.minimum(t, steps - 1), 0)
    return tl.load(track[0] + row * track[1], mask=tl.where(steps > 0, mask, False), other=0.0)


@triton.jit
def _at(track, t, mask):
    return _read(track[0] + t * track[1], mask)


@triton.jit
def _next_state(state, inputs, step, B, exponents):
    return tl.exp2(step[None, :] * exponents) * state + (step * inputs)[None, :] * B[:, None]


# The selective scan, forward


@triton.jit
def _summarise(
    direction, states_out, sums_out, layout, chunk_length, block, slot,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
):
    sequence, batch, start, length, first_slot = _find_sequence(slot, layout, chunk_length)
    first_step = (slot - first_slot) * chunk_length
    steps = tl.minimum(length - first_step, chunk_length)
    position, sign = _walk(direction.reverse, start, length, first_step)
    channels, states = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    here, in_states = channels < layout.channels, states < layout.states
    u = _track(direction.u, batch, position, sign, channels)
    delta = _track(direction.delta, batch, position, sign, channels)
    B = _track(direction.B, batch, position, sign, states)
    exponents = _exponents(direction.A, channels, states, layout, LOGARITHMIC, STATES, BLOCK)
    bias = _parameter(direction.delta_bias, channels, here)

    state = tl.zeros((STATES, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    next_u, next_delta = _ahead(u, 0, steps, here), _ahead(delta, 0, steps, here)
    next_B = _ahead(B, 0, steps, in_states)
    for t in range(steps):
        u_now, delta_now, B_now = next_u.to(tl.float32), next_delta, next_B.to(tl.float32)
        next_u, next_delta = _ahead(u, t + 1, steps, here), _ahead(delta, t + 1, steps, here)
        next_B = _ahead(B, t + 1, steps, in_states)
        step = _step(delta_now, bias, here, SOFTPLUS)
        state = _next_state(state, u_now, step, B_now, exponents)
        total += step
    tl.store(_tile(states_out, slot, block, layout, STATES, BLOCK), state)
    tl.store(sums_out + slot * layout.blocks * BLOCK + channels, total)


@triton.jit
def summarise_chunks(
    directions, states_out, sums_out, layout, chunk_length,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """Write the state after every chunk, scanned from a zero state, and the sum of the chunk's steps.

    states_out: per direction (slots, blocks, STATES, BLOCK); sums_out: per direction (slots, blocks, BLOCK).
    """
    block, which, slot = _program(layout.blocks, DIRECTIONS)
    for i in tl.static_range(DIRECTIONS):
        if which == i:
            _summarise(
                directions[i], states_out[i], sums_out[i], layout, chunk_length, block, slot, SOFTPLUS,
                LOGARITHMIC, STATES, BLOCK,
            )


@triton.jit
def _carry(
    carried, alone, sums, first, last, layout, exponents, sign, block, STATES: tl.constexpr, BLOCK: tl.constexpr,
):
    """Return a chunk's initial state: ``carried``, the state entering the sequence, propagated through the summaries of
    the slots first, first + sign, ..., last.

    Every program computes this itself. The device runs nearly all programs at once, so the few summaries are read from
    the cache. A separate kernel would add a wait.
    """
    channels = block * BLOCK + tl.arange(0, BLOCK)
    for i in range((last - first) * sign + 1):
        slot = first + i * sign
        tile = tl.load(_tile(alone, slot, block, layout, STATES, BLOCK))
        decay = tl.exp2(tl.load(sums + slot * layout.blocks * BLOCK + channels)[None, :] * exponents)
        # A zero stays zero even if the decay over a whole chunk overflows float32 (possible with a positive A).
        carried = tl.where(carried == 0, 0.0, decay * carried) + tile
    return carried


@triton.jit
def _scan(
    direction, z, alone, sums, output, last_state, checkpoints, layout, chunk_length, block, slot,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):
    sequence, batch, start, length, first_slot = _find_sequence(slot, layout, chunk_length)
    first_step = (slot - first_slot) * chunk_length
    steps = tl.minimum(length - first_step, chunk_length)
    position, sign = _walk(direction.reverse, start, length, first_step)
    channels, states = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    here, in_states = channels < layout.channels, states < layout.states
    u = _track(direction.u, batch, position, sign, channels)
    delta = _track(direction.delta, batch, position, sign, channels)
    B = _track(direction.B, batch, position, sign, states)
    C = _track(direction.C, batch, position, sign, states)
    out, out_stride = _track(output, batch, position, sign, channels)
    if z is not None:
        gate = _track(z, batch, position, sign, channels)
    exponents = _exponents(direction.A, channels, states, layout, LOGARITHMIC, STATES, BLOCK)
    bias = _parameter(direction.delta_bias, channels, here)
    D = _parameter(direction.D, channels, here)

    if direction.initial_state is not None:
        pointers, mask = _at_boundary(direction.initial_state, sequence, channels, states, layout)
        state = _read(pointers, mask)
    else:
        state = tl.zeros((STATES, BLOCK), tl.float32)
    if alone is not None:
        state = _carry(state, alone, sums, first_slot, slot - 1, layout, exponents, 1, block, STATES, BLOCK)
    if checkpoints is not None:
        first_tile, _ = _sequence_slots(sequence, layout, TILE)
        first_tile += first_step // TILE
    next_u, next_delta = _ahead(u, 0, steps, here), _ahead(delta, 0, steps, here)
    next_B, next_C = _ahead(B, 0, steps, in_states), _ahead(C, 0, steps, in_states)
    if z is not None:
        next_gate = _ahead(gate, 0, steps, here)
    for tile in range(tl.cdiv(steps, TILE)):
        if checkpoints is not None:
            tl.store(_tile(checkpoints, first_tile + tile, block, layout, STATES, BLOCK), state)
        for t in range(tile * TILE, tl.minimum(tile * TILE + TILE, steps)):
            u_now, delta_now = next_u.to(tl.float32), next_delta
            B_now, C_now = next_B.to(tl.float32), next_C.to(tl.float32)
            next_u, next_delta = _ahead(u, t + 1, steps, here), _ahead(delta, t + 1, steps, here)
            next_B, next_C = _ahead(B, t + 1, steps, in_states), _ahead(C, t + 1, steps, in_states)
            state = _next_state(state, u_now, _step(delta_now, bias, here, SOFTPLUS), B_now, exponents)
            y = tl.sum(state * C_now[:, None], axis=0) + D * u_now
            if z is not None:
                gating = next_gate.to(tl.float32)
                next_gate = _ahead(gate, t + 1, steps, here)
                y *= gating * _sigmoid(gating)
            tl.store(out + t * out_stride, y, mask=here)
    if last_state is not None:
        if (first_step <= tl.maximum(length - 1, 0)) & (first_step + chunk_length >= length):
            pointers, mask = _at_boundary(last_state, sequence, channels, states, layout)
            tl.store(pointers, state, mask=mask)


@triton.jit
def scan_forward(
    directions, z, alone, sums, outputs, last_states, checkpoints, layout, chunk_length,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, DIRECTIONS: tl.constexpr,
):
    """Write the outputs, gated if z is given.

    alone, sums: the results of summarise_chunks for each direction, or None if each sequence is one chunk. Optional
    outputs for each direction: last_states (sequences, states, channels); checkpoints (tiles, blocks, STATES, BLOCK),
    the state before every TILE steps.
    """
    block, which, slot = _program(layout.blocks, DIRECTIONS)
    for i in tl.static_range(DIRECTIONS):
        if which == i:
            _scan(
                directions[i], z, alone[i], sums[i], outputs[i], last_states[i], checkpoints[i], layout,
                chunk_length, block, slot, SOFTPLUS, LOGARITHMIC, STATES, BLOCK, TILE,
            )


@triton.jit
def gate_mean(
    first, second, z, output, length, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute output = silu(z) (first + second) / 2, elementwise over whole batch entries; z may be None."""
    batch = tl.program_id(2).to(tl.int64)
    times = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (times < length) & (lanes < channels)
    y = _read(_rows(first, batch, times, lanes), mask) + _read(_rows(second, batch, times, lanes), mask)
    y *= 0.5
    if z is not None:
        gating = _read(_rows(z, batch, times, lanes), mask)
        y *= gating * _sigmoid(gating)
    tl.store(_rows(output, batch, times, lanes), y, mask=mask)


# The selective scan, backward


@triton.jit
def _summarise_adjoint(
    direction, z, grad_output, adjoints_out, sums_out, layout, chunk_length, block, slot, scale,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
):
    sequence, batch, start, length, first_slot = _find_sequence(slot, layout, chunk_length)
    first_step = (slot - first_slot) * chunk_length
    steps = tl.minimum(length - first_step, chunk_length)
    position, sign = _walk(direction.reverse, start, length, first_step)
    channels, states = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    here, in_states = channels < layout.channels, states < layout.states
    delta = _track(direction.delta, batch, position, sign, channels)
    C = _track(direction.C, batch, position, sign, states)
    grad_rows = _track(grad_output, batch, position, sign, channels)
    if z is not None:
        gate = _track(z, batch, position, sign, channels)
    exponents = _exponents(direction.A, channels, states, layout, LOGARITHMIC, STATES, BLOCK)
    bias = _parameter(direction.delta_bias, channels, here)

    adjoint = tl.zeros((STATES, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    last = steps - 1
    next_delta, next_grad = _ahead(delta, last, steps, here), _ahead(grad_rows, last, steps, here)
    next_C = _ahead(C, last, steps, in_states)
    if z is not None:
        next_gate = _ahead(gate, last, steps, here)
    for i in range(steps):
        before = last - i - 1
        step = _step(next_delta, bias, here, SOFTPLUS)
        grad, C_now = next_grad.to(tl.float32) * scale, next_C.to(tl.float32)
        next_delta, next_grad = _ahead(delta, before, steps, here), _ahead(grad_rows, before, steps, here)
        next_C = _ahead(C, before, steps, in_states)
        if z is not None:
            gating = next_gate.to(tl.float32)
            next_gate = _ahead(gate, before, steps, here)
            grad *= gating * _sigmoid(gating)
        adjoint += grad[None, :] * C_now[:, None]
        adjoint *= tl.exp2(step[None, :] * exponents)
        total += step
    tl.store(_tile(adjoints_out, slot, block, layout, STATES, BLOCK), adjoint)
    tl.store(sums_out + slot * layout.blocks * BLOCK + channels, total)


@triton.jit
def summarise_adjoints(
    directions, z, grad_output, adjoints_out, sums_out, layout, chunk_length,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """Write the gradient of the state before every chunk, from this chunk's outputs only, and the sum of its steps.

    adjoints_out: per direction (slots, blocks, STATES, BLOCK); sums_out: per direction (slots, blocks, BLOCK).
    """
    block, which, slot = _program(layout.blocks, DIRECTIONS)
    for i in tl.static_range(DIRECTIONS):
        if which == i:
            _summarise_adjoint(
                directions[i], z, grad_output, adjoints_out[i], sums_out[i], layout, chunk_length, block,
                slot, 1.0 / DIRECTIONS, SOFTPLUS, LOGARITHMIC, STATES, BLOCK,
            )


@triton.jit
def _walk_on(
    state, u, delta, B, t, steps, bias, exponents, here, in_states, SOFTPLUS: tl.constexpr
):
    """Return the state after step t, given the state before it; unchanged past the chunk's end."""
    now, now_states = tl.where(t < steps, here, False), tl.where(t < steps, in_states, False)
    step = _step(_at(delta, t, now), bias, now, SOFTPLUS)
    return _next_state(state, _at(u, t, now), step, _at(B, t, now_states), exponents)


@triton.jit
def _differentiate(
    direction, z, grad_output, checkpoints, alone, sums, boundary, gradients, layout, chunk_length, block,
    slot, scale, SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):
    sequence, batch, start, length, first_slot = _find_sequence(slot, layout, chunk_length)
    first_step = (slot - first_slot) * chunk_length
    steps = tl.minimum(length - first_step, chunk_length)
    position, sign = _walk(direction.reverse, start, length, first_step)
    channels, states = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    here, in_states = channels < layout.channels, states < layout.states
    u = _track(direction.u, batch, position, sign, channels)
    delta = _track(direction.delta, batch, position, sign, channels)
    B = _track(direction.B, batch, position, sign, states)
    C = _track(direction.C, batch, position, sign, states)
    grad_rows = _track(grad_output, batch, position, sign, channels)
    if z is not None:
        gate = _track(z, batch, position, sign, channels)
        grad_z, grad_z_stride = _track(gradients.z, batch, position, sign, channels)
    grad_u, grad_u_stride = _track(gradients.u, batch, position, sign, channels)
    grad_delta, grad_delta_stride = _track(gradients.delta, batch, position, sign, channels)
    grad_B, grad_B_stride = _track(gradients.B, batch, position, sign, states)
    grad_C, grad_C_stride = _track(gradients.C, batch, position, sign, states)
    grad_B += block.to(tl.int64) * gradients.block_stride
    grad_C += block.to(tl.int64) * gradients.block_stride
    exponents = _exponents(direction.A, channels, states, layout, LOGARITHMIC, STATES, BLOCK)
    bias = _parameter(direction.delta_bias, channels, here)
    D = _parameter(direction.D, channels, here)

    # The adjoint is the gradient of the state after the current step, counting only the outputs of later steps.
    if boundary is not None:
        pointers, mask = _at_boundary(boundary, sequence, channels, states, layout)
        adjoint = _read(pointers, mask)
    else:
        adjoint = tl.zeros((STATES, BLOCK), tl.float32)
    if alone is not None:
        _, chunks = _sequence_slots(sequence, layout, chunk_length)
        last_slot = first_slot + chunks - 1
        adjoint = _carry(adjoint, alone, sums, last_slot, slot + 1, layout, exponents, -1, block, STATES, BLOCK)
    grad_A = tl.zeros((STATES, BLOCK), tl.float32)
    grad_D, grad_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)

    first_tile, sequence_tiles = _sequence_slots(sequence, layout, TILE)
    first_tile += first_step // TILE
    tiles = tl.cdiv(steps, TILE)
    for later_tiles in range(tiles):
        tile = tiles - 1 - later_tiles
        checkpoint = _tile(checkpoints, first_tile + tile, block, layout, STATES, BLOCK)
        # Four steps at a time, so that the states before them fit into registers. Recomputing these from the
        # checkpoint costs less than keeping all of the tile's states in memory.
        for later_groups in range(TILE // 4):
            first = tile * TILE + TILE - 4 - 4 * later_groups
            state0 = tl.load(checkpoint)
            for t in range(tile * TILE, first):
                state0 = _walk_on(state0, u, delta, B, t, steps, bias, exponents, here, in_states, SOFTPLUS)
            state1 = _walk_on(state0, u, delta, B, first, steps, bias, exponents, here, in_states, SOFTPLUS)
            state2 = _walk_on(state1, u, delta, B, first + 1, steps, bias, exponents, here, in_states, SOFTPLUS)
            state3 = _walk_on(state2, u, delta, B, first + 2, steps, bias, exponents, here, in_states, SOFTPLUS)
            for k in tl.static_range(4):
                if k == 0:
                    before = state3
                elif k == 1:
                    before = state2
                elif k == 2:
                    before = state1
                else:
                    before = state0
                t = first + 3 - k
                now, now_states = tl.where(t < steps, here, False), tl.where(t < steps, in_states, False)
                inputs, raw = _at(u, t, now), _at(delta, t, now)
                step = _step(raw, bias, now, SOFTPLUS)
                B_now, C_now = _at(B, t, now_states)[:, None], _at(C, t, now_states)[:, None]
                grad = _at(grad_rows, t, now) * scale
                decay = tl.exp2(step[None, :] * exponents)
                before = decay * before
                state = before + (step * inputs)[None, :] * B_now

                if z is not None:
                    gating = _at(gate, t, now)
                    sigmoid = _sigmoid(gating)
                    y = tl.sum(state * C_now, axis=0) + D * inputs
                    grad_gating = grad * y * sigmoid * (1.0 + gating * (1.0 - sigmoid))
                    tl.store(grad_z + t * grad_z_stride, grad_gating, mask=now)
                    grad *= gating * sigmoid
                grad_state = adjoint + grad[None, :] * C_now
                grad_exponent = grad_state * before
                grad_impulse = tl.sum(grad_state * B_now, axis=0)
                # exponents are A log2(e); the factor is removed after the sum.
                grad_step = grad_impulse * inputs + tl.sum(grad_exponent * exponents, axis=0) * (1 / LOG2_E)
                if SOFTPLUS:
                    grad_step *= _sigmoid(raw + bias)
                grad_A += grad_exponent * step[None, :]
                grad_D += grad * inputs
                grad_bias += tl.where(now, grad_step, 0.0)
                tl.store(grad_u + t * grad_u_stride, grad_impulse * step + grad * D, mask=now)
                tl.store(grad_delta + t * grad_delta_stride, grad_step, mask=now)
                to_B = tl.sum(grad_state * (step * inputs)[None, :], axis=1)
                to_C = tl.sum(state * grad[None, :], axis=1)
                tl.store(grad_B + t * grad_B_stride, to_B, mask=now_states)
                tl.store(grad_C + t * grad_C_stride, to_C, mask=now_states)
                adjoint = grad_state * decay

    if LOGARITHMIC:
        grad_A *= exponents * (1 / LOG2_E)
    tl.store(_tile(gradients.A, slot, block, layout, STATES, BLOCK), grad_A)
    if gradients.D is not None:
        tl.store(gradients.D + slot * layout.channels + channels, grad_D, mask=here)
    if gradients.delta_bias is not None:
        tl.store(gradients.delta_bias + slot * layout.channels + channels, grad_bias, mask=here)
    if gradients.initial_state is not None:
        if slot == first_slot:
            pointers, mask = _at_boundary(gradients.initial_state, sequence, channels, states, layout)
            tl.store(pointers, adjoint, mask=mask)


@triton.jit
def scan_backward(
    directions, z, grad_output, checkpoints, alone, sums, boundary, gradients, layout, chunk_length,
    SOFTPLUS: tl.constexpr, LOGARITHMIC: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """Write all gradients; those of parameters, B and C as parts that the caller sums.

    alone, sums: the results of summarise_adjoints for each direction, or None if each sequence is one chunk. boundary:
    the gradient of each direction's last state, (sequences, states, channels), or None for zeros.
    """
    block, which, slot = _program(layout.blocks, DIRECTIONS)
    for i in tl.static_range(DIRECTIONS):
        if which == i:
            _differentiate(
                directions[i], z, grad_output, checkpoints[i], alone[i], sums[i], boundary[i], gradients[i],
                layout, chunk_length, block, slot, 1.0 / DIRECTIONS, SOFTPLUS, LOGARITHMIC, STATES, BLOCK, TILE,
            )


# The causal convolution


@triton.jit
def _convolve(x, weight, bias, sign, batch, start, length, times, channels, here, WIDTH: tl.constexpr):
    """Return the convolution before SiLU at the given times of a sequence, with zeros outside the sequence."""
    result = tl.zeros((times.shape[0], channels.shape[1]), tl.float32) + _read(bias + channels, here)
    for tap in tl.static_range(WIDTH):
        source = times - sign * (WIDTH - 1 - tap)
        taken = _read(_rows(x, batch, start + source, channels), (source >= 0) & (source < length) & here)
        result += taken * _read(weight + channels * WIDTH + tap, here)
    return result


@triton.jit
def convolution_forward(
    x, weights, biases, reverse, outputs, layout,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """Write silu(convolution) for every direction. weights: (channels, WIDTH) each."""
    block, which, slot = _program(layout.blocks, 1)
    sequence, batch, start, length, first_slot = _find_sequence(slot, layout, ROWS)
    times = (slot - first_slot) * ROWS + tl.arange(0, ROWS)[:, None]
    channels = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    here = channels < layout.channels
    for i in tl.static_range(DIRECTIONS):
        sign = tl.where(reverse[i] != 0, -1, 1)
        result = _convolve(x, weights[i], biases[i], sign, batch, start, length, times, channels, here, WIDTH)
        result *= _sigmoid(result)
        tl.store(_rows(outputs[i], batch, start + times, channels), result, mask=(times < length) & here)


@triton.jit
def convolution_backward(
    x, weights, biases, reverse, grad_outputs, grad_x, grad_weights, grad_biases, layout,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):
    """Write the gradients; those of the parameters, (slots, WIDTH, channels) and (slots, channels), are parts that the
    caller sums."""
    block, which, slot = _program(layout.blocks, 1)
    sequence, batch, start, length, first_slot = _find_sequence(slot, layout, ROWS)
    times = (slot - first_slot) * ROWS + tl.arange(0, ROWS)[:, None]
    channels = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    here = channels < layout.channels
    to_x = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in tl.static_range(DIRECTIONS):
        sign = tl.where(reverse[i] != 0, -1, 1)
        # An input affects the outputs of WIDTH steps; the last tap affects the same step.
        for tap in tl.static_range(WIDTH):
            reached = times + sign * (WIDTH - 1 - tap)
            mask = (reached >= 0) & (reached < length) & here
            result = _convolve(
                x, weights[i], biases[i], sign, batch, start, length, reached, channels, here, WIDTH
            )
            sigmoid = _sigmoid(result)
            grad = _read(_rows(grad_outputs[i], batch, start + reached, channels), mask)
            grad *= sigmoid * (1.0 + result * (1.0 - sigmoid))
            to_x += grad * _read(weights[i] + channels * WIDTH + tap, here)
            if tap == WIDTH - 1:
                bias_pointers = grad_biases[i] + slot * layout.channels + channels
                tl.store(bias_pointers, tl.sum(grad, axis=0)[None, :], mask=here)
                for k in tl.static_range(WIDTH):
                    source = times - sign * (WIDTH - 1 - k)
                    taken = _read(
                        _rows(x, batch, start + source, channels), (source >= 0) & (source < length) & here
                    )
                    weight_pointers = grad_weights[i] + (slot * WIDTH + k) * layout.channels + channels
                    tl.store(weight_pointers, tl.sum(grad * taken, axis=0)[None, :], mask=here)
    tl.store(_rows(grad_x, batch, start + times, channels), to_x, mask=(times < length) & here)
