"""The front end and the network as an ONNX graph, with operators that onnxruntime has on every processor.

The selective scan is ONNX's Scan operator, once for each direction of a block, so the graph does not grow with its
input. Each step computes its own decays: at every measured length, from 128 to 2048 tokens, this was faster than
computing the decays of all steps first, and than scanning chunks in parallel. Windows of long recordings are iterations
of a Loop; the weights are stored once, outside the loop.
"""

import itertools

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ..frontend import PREEMPHASIS, SMALLEST_DEVIATION
from ..network.positions import position_embedding

OPSET = 18
LINEAR = "linear"
"""Prefix of the names of nodes that multiply by the weight of a linear layer."""

# log(1 + s) = 2 r + 2 r^3 (1/3 + ...) with r = s / (2 + s), for s from 0 to 1: coefficients of the series in r^2,
# highest power first, as in ops/cpu/kernel.c. onnxruntime's Softplus takes four times as long.
LOGARITHM = 0.14012232422828674, 0.13999569416046143, 0.20010849833488464, 0.3333320617675781


class Graph:
    """Builder of an ONNX graph: each call adds a node. Values are node output names; tensors and arrays are constants.

    Args:
        outer: enclosing graph of a Scan's or Loop's body, which can use its values. The outermost has all constants.
    """

    def __init__(self, outer=None):
        self.nodes = []
        self.constants = outer.constants if outer else {}
        self._numbers = outer._numbers if outer else itertools.count()

    def __call__(self, operator, *inputs, results=1, name=None, **attributes):
        """Append a node; return the name of its result, or a list of names."""
        number = next(self._numbers)
        outputs = [f"{operator}_{number}_{i}" for i in range(results)]
        inputs = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = f"{name or operator}_{number}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs[0] if results == 1 else outputs

    def constant(self, value):
        """Return the name of a constant: a tensor, an array, or whole numbers, which become (numbers,) int64."""
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if not isinstance(value, np.ndarray):
            value = np.asarray(value, dtype=np.int64).reshape(-1)
        value = np.asarray(value, order="C")
        key = value.dtype.str, value.shape, value.tobytes()
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = numpy_helper.from_array(value, name)
        return self.constants[key].name

    def body(self, name, inputs, outputs):
        """Return the body of a Scan or Loop; ``inputs`` and ``outputs`` are made by ``onnx.helper``."""
        return helper.make_graph(self.nodes, name, inputs, outputs)

    def renamed(self, value, name):
        """Give a value another name, and return that name."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        return name

    def size(self, value, axis):
        """Return the size of a value along an axis, (1,) int64."""
        return self("Shape", value, start=axis, end=axis + 1)

    def scalar(self, number):
        """Return a float32 constant of shape ()."""
        return self.constant(np.array(number, np.float32))

    def cut(self, value, axis, start, stop):
        """Slice a value along an axis; start and stop are whole numbers, or names of (1,) int64."""
        return self("Slice", value, start, stop, axis)

    def fit(self, value, axis, rank, size, padding=0.0):
        """Cut or pad the end of a value along an axis to a size: a whole number or (1,) int64."""
        lacking = self("Max", self("Sub", size, self.size(value, axis)), 0)
        zeros = [self.constant([0] * count) for count in (rank + axis, rank - axis - 1) if count]
        pads = self("Concat", *zeros[:1], lacking, *zeros[1:], axis=0)
        return self.cut(self("Pad", value, pads, self.scalar(padding)), axis, 0, size)


def log_mel(graph, wavs, module):
    """Map (batch, samples), at least one analysis window, to (batch, frames, mel), like the :class:`LogMel` ``module``.

    The Fourier transform is in float64, because onnxruntime's in float32 is less precise than torch's.
    """
    front_end = module.front_end
    length, shift = front_end.frame_samples, front_end.shift_samples
    count = graph("Add", graph("Div", graph("Sub", graph.size(wavs, 1), length), shift), 1)
    zero, one = np.array(0), np.array(1)
    starts = graph("Mul", graph("Range", zero, graph("Squeeze", count), one), np.array(shift))
    places = graph("Add", graph("Unsqueeze", starts, 1), np.arange(length))
    frames = graph("Gather", wavs, places, axis=1)
    frames = graph("Sub", frames, graph("ReduceMean", frames, -1, keepdims=1))
    previous = graph("Concat", graph.cut(frames, 2, 0, 1), graph.cut(frames, 2, 0, -1), axis=2)
    frames = graph("Sub", frames, graph("Mul", previous, graph.scalar(PREEMPHASIS)))
    frames = graph("Cast", graph("Mul", frames, module.window), to=TensorProto.DOUBLE)
    frames = graph("Reshape", frames, [-1, length, 1])
    spectra = graph("Cast", graph("DFT", frames, np.array(module.fft_length), axis=1, onesided=1), to=TensorProto.FLOAT)
    power = graph("ReduceSum", graph("Mul", spectra, spectra), -1, keepdims=0)
    shape = graph("Concat", graph.size(wavs, 0), count, graph.constant([module.fft_length // 2 + 1]), axis=0)
    energies = graph("MatMul", graph("Reshape", power, shape), module.mel_bands)
    logarithms = graph("Log", graph("Max", energies, graph.scalar(torch.finfo(torch.float32).eps)))
    if front_end.normalisation == "data":
        mean, deviation = graph.scalar(front_end.log_mel_mean), graph.scalar(front_end.log_mel_std)
        return graph("Div", graph("Sub", logarithms, mean), graph("Mul", deviation, graph.scalar(2)))
    centred = graph("Sub", logarithms, graph("ReduceMean", logarithms, [1, 2], keepdims=1))
    variance = graph("ReduceMean", graph("Mul", centred, centred), [1, 2], keepdims=1)
    deviation = graph("Max", graph("Sqrt", variance), graph.scalar(SMALLEST_DEVIATION))
    return graph("Div", centred, graph("Mul", deviation, graph.scalar(2)))


def clips(graph, wavs, module, samples, frames):
    """Map waveforms (batch, samples), cut to ``samples``, to (batch, frames, mel), as :meth:`LogMel.fixed_length` does;
    ``samples`` and ``frames`` are whole numbers."""
    front_end = module.front_end
    most = graph("Min", graph("Max", graph.size(wavs, 1), front_end.frame_samples), samples)
    return graph.fit(log_mel(graph, graph.fit(wavs, 1, 2, most), module), 1, 3, frames, front_end.padding)


class Network:
    """The nodes of a SsambaModel.

    Args:
        graph: graph to which the nodes are appended.
        model: the SsambaModel.
        columns: largest number of columns of patches in an input.
        states: names of the stream states of all blocks, stacked: (depth, 1, channels, taps - 1) and (depth, 1, states,
            channels). With states there is no class token, and ``carried`` lists the blocks' next states. Default:
            inputs are independent.
    """

    def __init__(self, graph, model, columns, states=None):
        self.graph, self.model, self.config = graph, model, model.config
        self.states, self.carried = states, ([], [])
        columns = 1 if model.config.causal else columns  # causal positions are the same at any time
        positions = position_embedding(model.pos_embed, model.config, model.config.num_patch_rows, columns)
        self.first = model.cls_token + positions[:, :1]
        self.positions = positions[:, 1:].transpose(1, 2).unflatten(2, (model.config.num_patch_rows, columns))

    def __call__(self, input_values):
        """Map (batch, frames, mel) to a list of (batch, tokens, E): depth + 1 hidden states and the last one's norm."""
        graph, model = self.graph, self.model
        image = graph("Unsqueeze", graph("Transpose", input_values, perm=[0, 2, 1]), 1)
        projection = model.patch_embed.proj
        patches = graph("Conv", image, projection.weight, projection.bias, strides=list(projection.stride))
        positions = self.positions
        if not self.config.causal:
            positions = graph.cut(positions, 3, 0, graph.size(patches, 3))
        patches = graph("Add", patches, positions)
        if self.config.token_order == "time_major":
            patches = graph("Transpose", patches, perm=[0, 1, 3, 2])
        patches = graph("Transpose", graph("Reshape", patches, [0, 0, -1]), perm=[0, 2, 1])
        batch = graph.size(patches, 0)
        first = graph("Expand", self.first, graph("Concat", batch, graph.constant([1, 1]), axis=0))
        tokens = graph("Concat", first, patches, axis=1) if self.states is None else patches
        state = graph.constant([self.config.state_size, self.config.intermediate_size])
        self.no_state = graph("ConstantOfShape", graph("Concat", batch, state, axis=0))
        streams = [tokens]
        run = self._paired if self.config.block_order == "paired" else self._sequential
        last = run(tokens, streams)
        return [*streams, self.norm(model.norm_f, last)]

    def frames(self, tokens, pooling):
        """Map (batch, tokens, E) to (batch, columns, rows * E), or to (batch, columns, E) if pooling is "mean"."""
        graph, rows = self.graph, self.config.num_patch_rows
        patches = graph("Reshape", self.patches(tokens), [0, rows, -1, self.config.hidden_size])
        if pooling == "mean":
            return graph("ReduceMean", patches, 1, keepdims=0)
        return graph("Reshape", graph("Transpose", patches, perm=[0, 2, 1, 3]), [0, 0, rows * self.config.hidden_size])

    def patches(self, tokens):
        """Return (batch, tokens, E) without the class token, in frequency-major order."""
        graph, width = self.graph, self.config.hidden_size
        patches = graph.cut(tokens, 1, 1, np.iinfo(np.int64).max) if self.states is None else tokens
        if self.config.token_order == "frequency_major":
            return patches
        columns = graph("Reshape", patches, [0, -1, self.config.num_patch_rows, width])
        return graph("Reshape", graph("Transpose", columns, perm=[0, 2, 1, 3]), [0, -1, width])

    def norm(self, norm, x):
        graph = self.graph
        if isinstance(norm, nn.LayerNorm):
            return graph("LayerNormalization", x, norm.weight, norm.bias, axis=-1, epsilon=norm.eps)
        square = graph("ReduceMean", graph("Mul", x, x), -1, keepdims=1)
        deviation = graph("Sqrt", graph("Add", square, graph.scalar(norm.eps)))
        return graph("Mul", graph("Div", x, deviation), norm.weight)

    def linear(self, layer, x):
        product = self.graph("MatMul", x, layer.weight.T, name=LINEAR)
        return product if layer.bias is None else self.graph("Add", product, layer.bias)

    def _sequential(self, stream, streams):
        for block in self.model.layers:
            stream = self._block(block, stream, False)
            streams.append(stream)
        return stream

    def _paired(self, stream, streams):
        graph, layers = self.graph, self.model.layers
        for pair in range(len(layers) // 2):
            both = [self._block(layers[2 * pair + i], stream, bool(i)) for i in range(2)]
            streams += [graph("Mul", member, graph.scalar(0.5**pair)) for member in both]
            stream = graph("Add", *both)
        return stream

    def _block(self, block, stream, time_reversed):
        mixed = self._mixer(block.mixer, self.norm(block.norm, stream), time_reversed)
        return self.graph("Add", stream, mixed)

    def _mixer(self, mixer, tokens, time_reversed):
        graph = self.graph
        x, z = graph("Split", self.linear(mixer.in_proj, tokens), axis=-1, num_outputs=2, results=2)
        x = graph("Transpose", x, perm=[0, 2, 1])
        scans = [self._direction(direction, x) for direction in mixer.directions(time_reversed)]
        mean = scans[0] if len(scans) == 1 else graph("Mul", graph("Add", *scans), graph.scalar(0.5))
        return self.linear(mixer.out_proj, graph("Mul", mean, self._silu(z)))

    def _direction(self, direction, x):
        graph, reverse = self.graph, direction["reverse"]
        convolution, states = direction["convolution"], direction["A_log"].shape[1]
        weight = convolution.weight
        past = weight.shape[2] - 1
        if self.states:
            x = graph("Concat", self._before(0), x, axis=2)
            self.carried[0].append(graph.cut(x, 2, -past, np.iinfo(np.int64).max))
            past = 0
        convolved = graph("Conv", x, weight.flip(2) if reverse else weight, convolution.bias,
                          group=weight.shape[0], pads=[0, past] if reverse else [past, 0])
        u = graph("Transpose", self._silu(convolved), perm=[0, 2, 1])
        projected = self.linear(direction["input_projection"], u)
        sizes = [direction["step_projection"].in_features, states, states]
        low, B, C = graph("Split", projected, sizes, axis=-1, results=3)
        step = self._softplus(self.linear(direction["step_projection"], low))
        scanned = self._scan(step, graph("Mul", step, u), B, C, -torch.exp(direction["A_log"].float()), reverse)
        return graph("Add", scanned, graph("Mul", u, direction["D"]))

    def _scan(self, step, impulse, B, C, A, reverse):
        """Return (batch, length, channels): C times the state, which decays by exp(step * A) and adds B * impulse.

        All sequences are brought into the shape of a step before the scan, where it costs nothing.
        """
        graph = self.graph
        inputs = [graph("Unsqueeze", value, axis) for value, axis in ((step, 2), (impulse, 2), (B, 3), (C, 2))]
        body = Graph(graph)
        names = [f"{name}_{next(graph._numbers)}" for name in ("state", "step", "impulse", "B", "C")]
        state, step, impulse, B, C = names
        decay = body("Exp", body("Mul", step, A.T))
        state = body("Add", body("Mul", decay, state), body("Mul", B, impulse))
        output = body("MatMul", C, state)
        body = body.body("step", [_value(name) for name in names], [_value(state), _value(output)])
        before = self._before(1) if self.states else self.no_state
        last, outputs = graph("Scan", before, *inputs, results=2, body=body, num_scan_inputs=4,
                              scan_input_axes=[1] * 4, scan_output_axes=[1], scan_input_directions=[int(reverse)] * 4,
                              scan_output_directions=[int(reverse)])
        self.carried[1].append(last)
        return graph("Squeeze", outputs, 2)

    def _before(self, kind):
        """Return the current block's state at the start of the input: its convolution's (kind 0) or scan's (kind 1)."""
        return self.graph("Gather", self.states[kind], np.array(len(self.carried[kind])), axis=0)

    def _silu(self, x):
        return self.graph("Mul", x, self.graph("Sigmoid", x))

    def _softplus(self, x):
        graph = self.graph
        small = graph("Exp", graph("Neg", graph("Abs", x)))
        ratio = graph("Div", small, graph("Add", small, graph.scalar(2)))
        square = graph("Mul", ratio, ratio)
        series = graph.scalar(LOGARITHM[0])
        for coefficient in LOGARITHM[1:]:
            series = graph("Add", graph("Mul", series, square), graph.scalar(coefficient))
        doubled = graph("Add", ratio, ratio)
        logarithm = graph("Add", doubled, graph("Mul", doubled, graph("Mul", series, square)))
        return graph("Add", graph("Relu", x), logarithm)


def windows(graph, features, count, encoder, states=None):
    """Return the frames of features of any length, window by window, as a FrameEncoder does.

    Args:
        features: (batch, fbank frames, mel).
        count: (1,) int64, number of frames.
        encoder: the FrameEncoder.
        states: names of a stream's states, see :class:`Network`.

    Returns:
        hidden states (depth + 1, batch, frames, D), the last one's norm (batch, frames, D), and a stream's next states.
    """
    config, columns = encoder.model.config, encoder.windowing.columns
    stride, patch = config.time_stride, config.patch_size[1]

    def length(graph, columns):
        """Return the number of fbank frames in a number of columns."""
        return graph("Add", graph("Mul", graph("Sub", columns, 1), stride), patch)

    features = graph.fit(features, 1, 3, length(graph, count))
    if encoder.windowing.whole:
        network = Network(graph, encoder.model, columns, states)
        *hidden, last = [network.frames(tokens, encoder.frequency_pooling) for tokens in network(features)]
        stacked = [graph("Concat", *(graph("Unsqueeze", state, 0) for state in part), axis=0)
                   for part in (hidden, *(network.carried if states else ()))]
        return stacked[0], last, *stacked[1:]
    turns = graph("Squeeze", graph("Div", graph("Add", count, columns - 1), columns))
    body = Graph(graph)
    names = [f"{name}_{next(graph._numbers)}" for name in ("turn", "go_on", "hidden", "last")]
    turn, go_on, hidden, last = names
    first = body("Mul", body("Reshape", turn, 1), columns)
    start = body("Mul", first, stride)
    here = body("Min", body("Sub", count, first), columns)
    window = body.cut(features, 1, start, body("Add", start, length(body, here)))
    network = Network(body, encoder.model, columns)
    *states, final = [network.frames(tokens, encoder.frequency_pooling) for tokens in network(window)]
    stacked = body("Concat", *(body("Unsqueeze", state, 0) for state in states), axis=0)
    results = [body("Identity", go_on), body("SequenceInsert", hidden, stacked), body("SequenceInsert", last, final)]
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    types = [helper.make_tensor_type_proto(TensorProto.BOOL, ()), sequence, sequence]
    body = body.body(
        "window",
        [helper.make_tensor_value_info(turn, TensorProto.INT64, ()),
         *map(helper.make_value_info, names[1:], types)],
        [*map(helper.make_value_info, results, types)],
    )
    empty = [graph("SequenceEmpty", dtype=TensorProto.FLOAT) for _ in range(2)]
    hidden, last = graph("Loop", turns, np.array(True), *empty, results=2, body=body)
    return graph("ConcatFromSequence", hidden, axis=2), graph("ConcatFromSequence", last, axis=1)


def _value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
