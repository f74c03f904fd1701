"""The selective scan in plain torch operations, one chunk of time steps at a time.

Everything that does not depend on the state (softplus, exponential, products with B and C) is computed for a whole
chunk at once; only the recurrence is a loop, with one fused multiply-add per step. Decays are never multiplied along
time, so a value underflows or overflows only if it does so in the definition. The backward pass keeps the state at each
chunk's start and recomputes the rest: memory grows with the number of chunks, not with the number of steps.
"""

import torch
import torch.nn.functional as F

# State elements in a chunk: small enough for a CPU's caches, large enough to amortise the cost of a call.
CHUNK_ELEMENTS = 1 << 19


def selective_scan_chunked(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False, return_last_state=False,
    initial_state=None,
):
    """Implement :func:`ssamba_upstream.ops.selective_scan`. Differentiable once."""
    output, last_state = _ChunkedScan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, initial_state)
    return (output, last_state) if return_last_state else output


class _Chunk:
    """A run of time steps, in scan order, with everything that can be computed without the state.

    Time is the first dimension, so a step is contiguous; channels are the last, so every product with B, C or A (here
    transposed: states, channels) runs along them. All chunks share a workspace for decays and states, because
    allocating them each time would cost more than the arithmetic.
    """

    def __init__(self, span, reverse, u, delta, A, B, C, z, delta_bias, delta_softplus, workspace):
        def time_first(sequence):
            part = sequence[:, :, span].permute(2, 0, 1)
            return (part.flip(0) if reverse else part).to(A.dtype).contiguous()

        self.span, self.reverse = span, reverse
        self.u, self.B, self.C = time_first(u), time_first(B), time_first(C)
        self.z = None if z is None else time_first(z)
        self.raw_delta = time_first(delta)
        if delta_bias is not None:
            self.raw_delta = self.raw_delta + delta_bias
        self.delta = F.softplus(self.raw_delta) if delta_softplus else self.raw_delta
        decay, self.states_buffer, self.gradient_buffer = workspace[:, : len(self.u)]
        self.decay = torch.mul(self.delta[:, :, None, :], A, out=decay).exp_()  # (time, batch, states, channels)

    def states(self, initial):
        """Return the state after each step, (time, batch, states, channels), from the state before the first."""
        impulse = (self.delta * self.u)[:, :, None, :]
        states = torch.mul(impulse, self.B[..., None], out=self.states_buffer)
        previous = initial
        for state, decay in zip(states.unbind(0), self.decay.unbind(0)):
            previous = state.addcmul_(decay, previous)
        return states

    def outputs(self, states, D):
        """Return the ungated outputs, (time, batch, channels): C times the states, plus the skip connection."""
        outputs = torch.matmul(self.C[:, :, None, :], states).squeeze(2)
        return outputs if D is None else outputs.addcmul_(self.u, D)

    def gradient_of_states(self, grad_y, grad_following):
        """Return the gradients of the states and of the initial state, from the gradient of the following state."""
        gradients = torch.mul(grad_y[:, :, None, :], self.C[..., None], out=self.gradient_buffer)
        for gradient, decay in zip(reversed(gradients.unbind(0)), reversed(self.decay.unbind(0))):
            grad_following = gradient.add_(grad_following) * decay
        return gradients, grad_following

    def gradient_of_exponent(self, grad_states, states, initial):
        """Return the gradient of delta * A; overwrites the states' gradients."""
        grad_states.mul_(self.decay)
        grad_states[0].mul_(initial)
        grad_states[1:].mul_(states[:-1])
        return grad_states

    def read(self, sequence):
        part = sequence[:, :, self.span].permute(2, 0, 1).to(self.u.dtype)
        return part.flip(0) if self.reverse else part

    def write(self, sequence, target):
        """Write this chunk's (time, batch, channels) to its place in (batch, channels, length)."""
        target[:, :, self.span] = (sequence.flip(0) if self.reverse else sequence).permute(1, 2, 0)


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, initial_state):
        dtype = torch.promote_types(u.dtype, torch.float32)
        skip = None if D is None else D.to(dtype)
        state = u.new_zeros(u.shape[0], A.shape[1], u.shape[1], dtype=dtype)
        if initial_state is not None:
            state.copy_(initial_state.transpose(1, 2))
        output = torch.empty_like(u)
        initial_states = []
        for chunk in _chunks(u, delta, A, B, C, z, delta_bias, delta_softplus, reverse, dtype):
            initial_states.append(state)
            states = chunk.states(state)
            state = states[-1].clone()
            y = chunk.outputs(states, skip)
            chunk.write(y if z is None else y.mul_(F.silu(chunk.z)), output)
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, *initial_states)
        ctx.delta_softplus, ctx.reverse = delta_softplus, reverse
        ctx.state_dtype = None if initial_state is None else initial_state.dtype
        return output, state.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_output, grad_last_state):
        if torch.is_grad_enabled():
            raise RuntimeError('this selective scan can be differentiated only once. For higher derivatives use '
                               'backend="reference"')
        u, delta, A, B, C, D, z, delta_bias, *initial_states = ctx.saved_tensors
        dtype = torch.promote_types(u.dtype, torch.float32)
        skip = None if D is None else D.to(dtype)
        A_by_state = A.to(dtype).T.contiguous()
        grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(x, dtype=dtype) for x in (u, delta, B, C))
        grad_z = None if z is None else torch.empty_like(z, dtype=dtype)
        grad_A = torch.zeros_like(A_by_state)
        grad_D = None if D is None else torch.zeros_like(skip)
        grad_bias = None if delta_bias is None else torch.zeros_like(delta_bias, dtype=dtype)
        grad_state = grad_last_state.to(dtype).transpose(1, 2)

        chunks = _chunks(u, delta, A, B, C, z, delta_bias, ctx.delta_softplus, ctx.reverse, dtype, backward=True)
        for chunk, initial in zip(chunks, reversed(initial_states)):
            states = chunk.states(initial)
            grad_y = chunk.read(grad_output)
            if z is not None:
                gate = torch.sigmoid(chunk.z)
                grad_gate = grad_y * chunk.outputs(states, skip)
                chunk.write(grad_gate * gate * (1 + chunk.z * (1 - gate)), grad_z)
                grad_y = grad_y * chunk.z * gate
            chunk.write(torch.matmul(states, grad_y[..., None]).squeeze(-1), grad_C)

            grad_states, grad_state = chunk.gradient_of_states(grad_y, grad_state)
            grad_impulse = torch.matmul(chunk.B[:, :, None, :], grad_states).squeeze(2)
            chunk.write(torch.matmul(grad_states, (chunk.delta * chunk.u)[..., None]).squeeze(-1), grad_B)

            grad_exponent = chunk.gradient_of_exponent(grad_states, states, initial)
            grad_step = grad_impulse * chunk.u + torch.mul(grad_exponent, A_by_state, out=states).sum(2)
            grad_A += torch.mul(grad_exponent, chunk.delta[:, :, None, :], out=states).sum((0, 1))
            if ctx.delta_softplus:
                grad_step = grad_step * torch.sigmoid(chunk.raw_delta)
            chunk.write(grad_step, grad_delta)
            if delta_bias is not None:
                grad_bias += grad_step.sum((0, 1))
            grad_inputs = grad_impulse * chunk.delta
            if D is not None:
                grad_inputs.addcmul_(grad_y, skip)
                grad_D += (grad_y * chunk.u).sum((0, 1))
            chunk.write(grad_inputs, grad_u)

        gradients = (grad_u, grad_delta, grad_A.T, grad_B, grad_C, grad_D, grad_z, grad_bias)
        originals = (u, delta, A, B, C, D, z, delta_bias)
        grad_initial = None if ctx.state_dtype is None else grad_state.transpose(1, 2).to(ctx.state_dtype)
        return *(None if g is None else g.to(x.dtype) for g, x in zip(gradients, originals)), None, None, grad_initial


def _chunks(u, delta, A, B, C, z, delta_bias, delta_softplus, reverse, dtype, backward=False):
    """Yield the chunks in scan order, or in reverse for the backward pass."""
    batch, channels, length = u.shape
    state_size = A.shape[1]
    steps = min(length, max(1, CHUNK_ELEMENTS // max(1, batch * channels * state_size)))
    workspace = u.new_empty(3, steps, batch, state_size, channels, dtype=dtype)
    A = A.to(dtype).T.contiguous()
    delta_bias = None if delta_bias is None else delta_bias.to(dtype)
    spans = [slice(start, min(start + steps, length)) for start in range(0, length, steps or 1)]
    for span in reversed(spans) if reverse != backward else spans:
        yield _Chunk(span, reverse, u, delta, A, B, C, z, delta_bias, delta_softplus, workspace)
