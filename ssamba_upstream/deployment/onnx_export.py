"""``ssamba export``: writing a checkpoint as an ONNX file, after comparing it with the network in onnxruntime."""

import json
import os
from dataclasses import dataclass

import numpy as np
import torch

from ..benchmark.timing import median_times
from ..checkpoint import CheckpointError, content_hash, find_checkpoint, load_model
from ..files import replacing
from ..frames import FrameEncoder, UpstreamOptions
from ..frontend import LogMel
from ..network.classification import SsambaClassifier, columns_of_seconds
from ..windows import encode, token_index, tokens_to_frames
from .recordings import load_extractor

READS = ("waveform", "log_mel")
WRITES = ("hidden_states", "embedding", "logits")

TOLERANCE = 1e-4
"""Largest allowed difference of float32 outputs from the network's, relative to their largest magnitude or to 1."""

COMPARED = ((1, 0.1), (2, 1.03), (1, 12.3))
"""Number of utterances, and length of each in seconds, of the noise on which outputs are compared."""

TIMED_SECONDS = 10


class ExportError(ValueError):
    """A network that cannot be exported as requested, or whose ONNX graph computes different outputs."""


@dataclass(frozen=True)
class Export:
    """Measurements of an exported ONNX file.

    Attributes:
        differences: output name -> largest absolute difference from the network's output, on noise.
        magnitudes: output name -> largest magnitude of the network's output.
        milliseconds: "onnxruntime" and "torch" -> median time for one utterance of 10 s, with equally many threads.
        size: file size in bytes.
    """

    differences: dict
    magnitudes: dict
    milliseconds: dict
    size: int


def export(checkpoint: str | os.PathLike, out: str | os.PathLike, reads: str = "waveform", writes: str | None = None,
           int8: bool = False, stream: bool = False, **options) -> Export:
    """Write a checkpoint as an ONNX file, for onnxruntime 1.17 or later.

    Batch and time are dynamic. All utterances of a batch have the same length; there is no padding.

    ================= =======================================================================================
    output            shape and content
    ================= =======================================================================================
    ``hidden_states`` encoders: (depth + 1, batch, frames, D), and ``last_hidden_state`` (batch, frames, D), as from
                      :class:`ssamba_upstream.frames.FrameEncoder`, with longer inputs split into windows
    ``embedding``     encoders: (batch, D), the mean of ``last_hidden_state`` over time
    ``logits``        classifiers: (batch, classes), or (batch, seconds, classes), before softmax or sigmoid
    ================= =======================================================================================

    Args:
        checkpoint: see :func:`ssamba_upstream.checkpoint.load_model`.
        out: path of the file; an existing one is replaced.
        reads: "waveform": ``waveform`` (batch, samples), at least one sample, in [-1, 1], at the network's sampling
            rate; or "log_mel": ``input_values`` (batch, frames, mel), normalised. An encoder returns ceil(frames / time
            stride) frames for the latter. A classifier cuts or pads waveforms to the length of its clips, and accepts
            log-mel from one patch up to that length.
        writes: "hidden_states", "embedding" or "logits". Default: "logits" for classifiers, otherwise "embedding".
        int8: If True, use onnxruntime's dynamic quantisation: the weights of linear layers are stored in eight bits,
            and their inputs are rounded to eight bits at run time. An utterance's outputs then depend on the rest of
            the batch.
        stream: If True, export one step of a causal network's stream. A chunk has ``column_samples`` samples, plus
            ``hop`` for each further frame; the next chunk starts ``hop`` samples after the start of this one's last
            frame. Outputs ``next_convolution_state`` and ``next_scan_state`` are the next chunk's inputs
            ``convolution_state`` and ``scan_state``; without these inputs a new stream starts.
        options: fields of :class:`ssamba_upstream.frames.UpstreamOptions`, for encoders.

    Returns:
        Export.

    Raises:
        ExportError: If the request does not suit the checkpoint, or the graph computes different outputs. Nothing is
            written then.
        CheckpointError, ValueError: see :meth:`ssamba_upstream.frames.FrameEncoder.from_checkpoint`.
        ModuleNotFoundError: If the extra ``onnx`` is not installed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from .onnx_graph import LINEAR

    if reads not in READS:
        raise ExportError(f"reads must be one of {', '.join(READS)}; got {reads!r}")
    checkpoint = find_checkpoint(checkpoint)
    subject = _subject(checkpoint, reads, writes, stream, options)
    model = _model(subject, {"reads": reads, **subject.metadata, "checkpoint": content_hash(checkpoint)})
    with replacing(out) as temporary:
        if int8:
            names = [node.name for node in _nodes(model.graph) if node.name.startswith(LINEAR)]
            quantize_dynamic(model, temporary, op_types_to_quantize=["MatMul"], nodes_to_quantize=names,
                             per_channel=True, weight_type=QuantType.QUInt8, extra_options={"EnableSubgraph": True})
        else:
            onnx.save(model, temporary)
        differences, magnitudes = _compare(subject, temporary, None if int8 else TOLERANCE)
        milliseconds = _race(subject, temporary)
        size = temporary.stat().st_size
    return Export(differences, magnitudes, milliseconds, size)


def open_session(path):
    """Return an onnxruntime session of a file, on the CPU, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only, because it warns of every initialiser that is folded away
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Encoder:
    """An encoder's frames, as ONNX nodes and in torch.

    Attributes:
        input_name, input_shape: name and shape of the graph's input.
        output_shapes: output name -> shape.
        states: optional inputs, name -> value at the start of a stream.
        metadata: metadata stored in the file.
    """

    def __init__(self, model, reads, writes, options):
        self.reads, self.writes, self.states = reads, writes, {}
        self.encoder = FrameEncoder.from_model(model, UpstreamOptions(**options)).eval()
        windowing, config = self.encoder.windowing, self.encoder.model.config
        if windowing.padding != "none" or self.encoder.autocast_dtype is not None:
            raise ExportError("encoders can be exported only with padding none and precision float32")
        if config.positions == "published":
            raise ExportError('positions="published" depends on the length of each window, which is not fixed here. '
                              'Export with positions="physical"')
        self.input_name, self.input_shape = _input(reads, config)
        width = self.encoder.width
        self.output_shapes = {"embedding": ["batch", width]} if writes == "embedding" else {
            "hidden_states": [config.num_hidden_layers + 1, "batch", "frames", width],
            "last_hidden_state": ["batch", "frames", width],
        }
        self.metadata = {
            "sampling_rate": config.sampling_rate, "hop": windowing.hop, "window_secs": windowing.window_secs,
        }

    def nodes(self, graph, value):
        from . import onnx_graph

        windowing = self.encoder.windowing
        if self.reads == "waveform":
            count = graph("Div", graph("Add", graph.size(value, 1), windowing.hop - 1), windowing.hop)
            at_least = graph("Max", graph.size(value, 1), windowing.front_end.frame_samples)
            value = onnx_graph.log_mel(graph, graph.fit(value, 1, 2, at_least), self.encoder.log_mel)
        else:
            stride = windowing.time_stride
            count = graph("Div", graph("Add", graph.size(value, 1), stride - 1), stride)
        hidden, last = onnx_graph.windows(graph, value, count, self.encoder)
        return [graph("ReduceMean", last, 1, keepdims=0)] if self.writes == "embedding" else [hidden, last]

    @torch.no_grad()
    def compute(self, batch):
        if self.reads == "waveform":
            output = self.encoder(list(batch))
            hidden, last = torch.stack(output.hidden_states), output.last_hidden_state
        else:
            hidden, last = self._frames(batch)
        return {"embedding": last.mean(dim=1)} if self.writes == "embedding" else {
            "hidden_states": hidden, "last_hidden_state": last,
        }

    def example(self, utterances, seconds):
        wavs = _noise(utterances, seconds, self.encoder.model.config.sampling_rate)
        return wavs if self.reads == "waveform" else torch.stack(self.encoder.log_mel(list(wavs)))

    def _frames(self, batch):
        encoder = self.encoder
        count = -(-batch.shape[1] // encoder.windowing.time_stride)
        windows = [encoder.windowing.windows_of(features, count) for features in batch]
        layers, firsts = encode([window for run in windows for window in run], encoder.model)
        index = token_index([count] * len(batch), windows, firsts, encoder.model.config)
        *hidden, last = [tokens_to_frames(tokens, index, encoder.frequency_pooling) for tokens in layers]
        return torch.stack(hidden), last


class _Stream(_Encoder):
    """A causal network's frames, chunk by chunk, with its states."""

    def __init__(self, model, reads, writes, options):
        super().__init__(model, reads, writes, options)
        if (reads, writes) != ("waveform", "hidden_states"):
            raise ExportError("a stream reads waveforms and writes hidden states. Leave input and output out")
        convolution, scan = map(torch.stack, zip(*self.encoder.model.start(1)))
        self.states = {"convolution_state": convolution, "scan_state": scan.transpose(2, 3).contiguous()}
        self.input_shape = [1, "samples"]
        self.output_shapes |= {f"next_{name}": list(start.shape) for name, start in self.states.items()}
        self.metadata["column_samples"] = self.encoder.log_mel.front_end.samples_of(self.encoder.windowing.patch_width)

    def nodes(self, graph, value):
        from . import onnx_graph

        windowing = self.encoder.windowing
        features = onnx_graph.log_mel(graph, value, self.encoder.log_mel)
        beyond = graph("Sub", graph.size(features, 1), windowing.patch_width)
        count = graph("Add", graph("Div", beyond, windowing.time_stride), 1)
        return onnx_graph.windows(graph, features, count, self.encoder, [*self.states])

    def example(self, utterances, seconds):
        """Return noise that is at least one column long."""
        rate = self.metadata["sampling_rate"]
        return super().example(utterances, max(seconds, self.metadata["column_samples"] / rate))

    def compute(self, batch):
        stream = self.encoder.stream()
        outputs = [stream.push(chunk) for chunk in batch[0].split(self.encoder.windowing.hop)]
        hidden, last = zip(*((torch.stack(output.hidden_states), output.last_hidden_state) for output in outputs))
        convolution, scan = map(torch.stack, zip(*stream._states))
        return {"hidden_states": torch.cat(hidden, dim=2), "last_hidden_state": torch.cat(last, dim=1),
                "next_convolution_state": convolution, "next_scan_state": scan.transpose(2, 3)}


class _Classifier:
    """A classifier's logits; attributes and methods as in :class:`_Encoder`."""

    def __init__(self, model, reads, extractor):
        self.reads, self.model, self.extractor, self.states = reads, model, extractor, {}
        self.log_mel = LogMel(extractor.front_end)
        self.input_name, self.input_shape = _input(reads, model.config)
        if reads == "log_mel" and (model.labels_seconds or model.config.positions == "published"):
            raise ExportError('seconds, and positions="published", depend on the length of the log-mel, which is not '
                              "fixed. Export a graph that reads waveforms, whose clips all have the same length")
        seconds = [len(self._seconds())] if model.labels_seconds else []
        self.output_shapes = {"logits": ["batch", *seconds, model.config.num_labels]}
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.metadata = {
            "sampling_rate": self.extractor.sampling_rate, "labels": labels, "problem_type": model.config.problem_type,
            "clip_samples": self.extractor.clip_samples,
        }

    def nodes(self, graph, value):
        from . import onnx_graph

        frames, model = self.extractor.max_length, self.model
        if self.reads == "waveform":
            value = onnx_graph.clips(graph, value, self.log_mel, self.extractor.clip_samples, frames)
        network = onnx_graph.Network(graph, model.ssamba, model.config.columns(frames))
        tokens = network(value)[-1]
        if model.config.final_norm_twice:
            tokens = network.norm(model.ssamba.norm_f, tokens)
        norm, layer = model.head
        if model.labels_seconds:
            features = graph("MatMul", self._seconds(), network.patches(tokens))
        elif model.config.pooling == "cls":
            features = graph("Squeeze", graph.cut(tokens, 1, 0, 1), 1)
        else:
            features = graph("ReduceMean", network.patches(tokens), 1, keepdims=0)
        return [network.linear(layer, network.norm(norm, features))]

    @torch.no_grad()
    def compute(self, batch):
        if self.reads == "waveform":
            batch = self._fixed_length(batch)
        return {"logits": self.model(batch).logits}

    def example(self, utterances, seconds):
        wavs = _noise(utterances, seconds, self.extractor.sampling_rate)
        if self.reads == "waveform":
            return wavs
        features = self._fixed_length(wavs)
        shortest, frames = self.model.config.patch_size[1], self.extractor.front_end.frames_of(wavs.shape[1])
        return features[:, : min(max(frames, shortest), self.extractor.max_length)]

    def _fixed_length(self, wavs):
        """Return the log-mel of (batch, samples), (batch, frames, mel)."""
        return self.log_mel.fixed_length(list(wavs[:, : self.extractor.clip_samples]), self.extractor.max_length)

    def _seconds(self):
        """Return (seconds, patches), the weight of each patch of a clip in the mean of each second."""
        config, frames = self.model.config, self.extractor.max_length
        counts = columns_of_seconds(config, frames)
        weights = torch.zeros(len(counts), config.num_patch_rows, config.columns(frames))
        ends = np.cumsum(counts)
        for second, (count, end) in enumerate(zip(counts, ends)):
            weights[second, :, end - count : end] = 1 / (count * config.num_patch_rows)
        return weights.flatten(1)


def _subject(checkpoint, reads, writes, stream, options):
    model = load_model(checkpoint, model_class=None)
    classifies = isinstance(model, SsambaClassifier)
    writes = writes or ("hidden_states" if stream else "logits" if classifies else "embedding")
    if writes not in WRITES:
        raise ExportError(f"writes must be one of {', '.join(WRITES)}; got {writes!r}")
    if stream or writes != "logits":
        return (_Stream if stream else _Encoder)(model.base_model, reads, writes, options)
    if not classifies:
        raise CheckpointError(f"{checkpoint} is not a classifier and has no logits. Write embedding or hidden_states")
    if options:
        raise ExportError(f"the options {', '.join(options)} are for encoders. Leave them out for a classifier")
    return _Classifier(model, reads, load_extractor(checkpoint, model))


def _input(reads, config):
    if reads == "waveform":
        return "waveform", ["batch", "samples"]
    return "input_values", ["batch", "fbank_frames", config.num_mel_bins]


@torch.no_grad()
def _model(subject, metadata):
    from onnx import TensorProto, helper, numpy_helper

    from .onnx_graph import OPSET, Graph

    graph = Graph()
    inputs = {subject.input_name: subject.input_shape, **{name: start.shape for name, start in subject.states.items()}}
    results = subject.nodes(graph, subject.input_name)
    named = [graph.renamed(result, name) for result, name in zip(results, subject.output_shapes)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "ssamba",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, subject.output_shapes[name]) for name in named],
            [*graph.constants.values(),
             *(numpy_helper.from_array(start.numpy(), name) for name, start in subject.states.items())],
        ),
        producer_name="ssamba-upstream", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8,
    )
    helper.set_model_props(model, {"ssamba": json.dumps(metadata)})
    return model


def _nodes(graph):
    """Yield all nodes of a graph and its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _compare(subject, path, tolerance):
    """Return the outputs' largest differences and largest magnitudes by name, on noise of several lengths."""
    session = open_session(path)
    differences, magnitudes = dict.fromkeys(subject.output_shapes, 0.0), dict.fromkeys(subject.output_shapes, 0.0)
    for utterances, seconds in COMPARED:
        batch = subject.example(utterances, seconds)
        expected = subject.compute(batch)
        found = _run(subject, session, list(expected), batch)
        for (name, right), value in zip(expected.items(), found):
            if value.shape != right.shape:
                raise ExportError(f"{name} of {utterances} x {seconds} s has the shape {value.shape} in onnxruntime, "
                                  f"but {tuple(right.shape)} in torch")
            difference, magnitude = float(np.abs(value - right.numpy()).max()), float(right.abs().max())
            if not np.isfinite(difference) or tolerance and difference > tolerance * max(1.0, magnitude):
                raise ExportError(f"{name} of {utterances} x {seconds} s differs by {difference:.1e} from the "
                                  f"network's, of up to {magnitude:.1e}; expected at most {tolerance} of that, or of 1")
            differences[name] = max(differences[name], difference)
            magnitudes[name] = max(magnitudes[name], magnitude)
    return differences, magnitudes


def _run(subject, session, names, batch):
    """Return onnxruntime's outputs with the given names; a stream is computed frame by frame."""
    if not subject.states:
        return session.run(names, {subject.input_name: batch.numpy()})
    column, pieces, states = subject.metadata["column_samples"], [], {}
    for begin in range(0, batch.shape[1] - column + 1, subject.metadata["hop"]):
        chunk = batch[:1, begin : begin + column].numpy()
        pieces.append(dict(zip(names, session.run(names, {"waveform": chunk, **states}))))
        states = {name: pieces[-1][f"next_{name}"] for name in subject.states}
    return [pieces[-1][name] if name.startswith("next_") else np.concatenate([piece[name] for piece in pieces], axis=-2)
            for name in names]


def _race(subject, path):
    session, batch = open_session(path), subject.example(1, TIMED_SECONDS)
    return median_times({
        "onnxruntime": lambda: _run(subject, session, list(subject.output_shapes), batch),
        "torch": lambda: subject.compute(batch),
    }, rounds=3)


def _noise(utterances, seconds, sampling_rate):
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(utterances, round(seconds * sampling_rate), generator=generator)
