"""The inside of any functional Keras model: a tensor for every layer's path, models nested in it opened.

Keras gives out a layer's symbolic output, but none that is connected across the wall of a nested model: a sub-model over
both sides is refused, and one over each runs the layers twice. Here the graph is run once, node by node, as Keras itself
runs it, and stepping into a nested model where a tensor inside it is asked for. No layer is copied, called on symbols or
changed, and what leads to no tensor asked for is not computed.
"""

import collections
import difflib

import keras
from keras import tree

# Keras has no public way to walk a graph. These few names are what its own `clone_model` lives on; the tests hold them.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.models.functional import Functional, operation_fn

from tfkd.models.foreign import activation_of, choose_inputs, fixed_length, meaning, pad_to, to_logits

INSIDE_ATTENTION = ("attention", "query", "key", "value")
ROWS_OF_POSITIONS = ("embeddings", "hidden", "logits")
"""First parts of the names of tensors (B, T, ...)."""


def graph_of(layer) -> Functional | None:
    """The graph that a call of `layer` runs, or None where it runs code of its own."""
    if isinstance(layer, keras.Sequential):
        return layer._functional if type(layer).call is keras.Sequential.call else None
    return layer if isinstance(layer, Functional) and type(layer).call is Functional.call else None


class FunctionalInner:
    """Inner tensors of a functional model, by layer path or by the names of our encoders.

    A tensor's path is made of layer names, `bert_backbone/transformer_layer_3`; the end of a path will do where only one
    ends so. Of several outputs one is `layer:key` or `layer:0`; of several calls one is `layer@0`, `layer@1`.
    `logits` is the model's output, float32, before a softmax or sigmoid that its last layer may have. `hidden.i`,
    `embeddings` and `pooled` are known of KerasHub's Transformer backbones. Where the model takes texts of one length, they
    are padded to it, and our names' positions that this added are cut off again.

    Arguments:
        model: functional, or a built `Sequential`.
        mapping: our name -> path, such as `{"hidden.3": "bert_backbone/transformer_layer_3"}`.
        activation: what the logits have been through, `linear`, `softmax` or `sigmoid`; default: what their layer says.

    Raises:
        ValueError: the model is not functional, or has no tensor of a path in `mapping`.
    """

    def __init__(self, model: keras.Model, mapping: dict[str, str] | None = None, activation: str | None = None):
        graph = graph_of(model)
        if graph is None:
            raise ValueError(f"{model.name} is a {type(model).__name__}, not a functional model: its layers cannot be named")
        self.name, self.activation = model.name, activation
        self.root = _Level(graph)
        self.lengths = {symbol.name: fixed_length(symbol.name, symbol.shape) for symbol in graph.inputs}
        self.limits = [length for length in self.lengths.values() if length]
        self.tensors, self.known = {}, {}
        self._collect(self.root, model, "")
        ends = [path for path in self.tensors if path.rpartition("/")[2] == "pooled_dense"]
        if self.known and len(ends) == 1:
            self.known["pooled"] = self.tensors[ends[0]]
        self.mapping = dict(mapping or {})
        self.shapes(self.mapping)

    @property
    def takes(self) -> list[str]:
        """Our names of the inputs that the model takes."""
        return [meaning(symbol.name) for symbol in self.root.graph.inputs]

    @property
    def layers(self) -> int | None:
        """How many Transformer layers `hidden.i` counts; None where it is not known of any."""
        names = [name.partition(".") for name in (*self.known, *self.mapping)]
        indices = [int(index) for family, _, index in names if family == "hidden" and index.isdigit()]
        return max(indices) + 1 if indices else None

    @property
    def max_length(self) -> int | None:
        """Longest text in word pieces; None where the model does not say."""
        return min(self.limits, default=None)

    def shapes(self, names) -> dict:
        """Name -> shape, None where a dimension is not known before a batch."""
        shapes = {name: tuple(self._find(name)[1].shape) for name in names}
        cut = [name for name, shape in shapes.items() if name.partition(".")[0] in ROWS_OF_POSITIONS and len(shape) > 2]
        return shapes | {name: (shapes[name][0], None, *shapes[name][2:]) for name in cut}

    def inner(self, inputs, names, training=None) -> dict:
        """The tensors called `names`, in one pass. `inputs` may hold more than the model takes."""
        if not names:
            return {}
        found = {name: self._find(name) for name in names}
        run = _Run(found.values(), training)
        graph = self.root.graph
        given = choose_inputs(list(self.lengths), inputs, self.name)
        chosen = {name: pad_to(value, self.lengths[name], self.name) for name, value in given.items()}
        run(self.root, tree.map_structure(lambda symbol: chosen[symbol.name], graph.input))
        answer = {name: run.values[level][id(symbol)] for name, (level, symbol) in found.items()}
        for key in [key for key, length in self.lengths.items() if length][:1]:
            positions = keras.ops.shape(given[key])[1]
            rows = [name for name in names if name.partition(".")[0] in ROWS_OF_POSITIONS and len(answer[name].shape) > 2]
            answer |= {name: answer[name][:, :positions] for name in rows}
        if "logits" in answer:
            answer["logits"] = to_logits(answer["logits"], self.activation or _activation(*found["logits"]))
        return answer

    def _collect(self, level, layer, prefix):
        """Names every tensor of a graph and of those nested in it."""
        for node in level.nodes:
            path = prefix + level.label(node)
            for key, symbol in zip(_keys(node), node.outputs, strict=True):
                self.tensors[path + key] = (level, symbol)
            graph = graph_of(node.operation)
            if graph is not None:
                level.children[node] = _Level(graph, level, node)
                self._collect(level.children[node], node.operation, f"{path}/")
        self._recognize(level, layer)

    def _recognize(self, level, layer):
        """Our names of a KerasHub backbone's tensors: what its first Transformer layer gets, and what each gives."""
        blocks = getattr(layer, "transformer_layers", None)
        if not type(layer).__module__.startswith("keras_hub.") or not isinstance(blocks, list):
            return
        nodes = {node.operation: node for node in level.nodes}
        if not blocks or not all(isinstance(block, keras.layers.Layer) and len(level.calls[block]) == 1 for block in blocks):
            return
        self.limits += [layer.max_sequence_length] if getattr(layer, "max_sequence_length", None) else []
        if "embeddings" in self.known:  # a second backbone: whose layer 3 is meant must be said
            self.known = {"embeddings": None}
            return
        self.known["embeddings"] = (level, nodes[blocks[0]].input_tensors[0])
        self.known |= {f"hidden.{index}": (level, nodes[block].outputs[0]) for index, block in enumerate(blocks)}

    def _find(self, name):
        """(level, symbol) of a name. Raises `ValueError` with near names."""
        path = self.mapping.get(name, name)
        if path == "logits":
            return self._output()
        if self.known.get(path) is not None:
            return self.known[path]
        if path in self.tensors:
            return self.tensors[path]
        ends = [known for known in self.tensors if known.endswith(f"/{path}")]
        if len(ends) == 1:
            return self.tensors[ends[0]]
        if ends:
            raise ValueError(f"{self.name}: {path!r} ends several paths, {', '.join(ends[:4])}; give one of them whole")
        raise ValueError(self._unknown(name, path))

    def _output(self):
        """The model's one output, or the one under `logits`."""
        output = self.root.graph.output
        if isinstance(output, dict) and "logits" in output:
            return self.root, output["logits"]
        if len(self.root.graph.outputs) == 1:
            return self.root, self.root.graph.outputs[0]
        keys = ", ".join(output) if isinstance(output, dict) else f"{len(self.root.graph.outputs)} tensors"
        raise ValueError(f"{self.name} answers with {keys}, none of them called logits: map logits to a layer's path")

    def _unknown(self, name, path):
        asked = f"{self.name}: no inner tensor {path!r}" + (f" for {name!r}" if path != name else "")
        family, _, index = path.partition(".")
        if family in INSIDE_ATTENTION and index.isdigit():
            return (
                f"{asked}: layers other than tfkd's keep attention scores, queries, keys and values to themselves; use "
                "objectives over hidden states, or open the model as a checkpoint of the BERT family, into tfkd's layers"
            )
        if family == "hidden" and index.isdigit() and path == name:
            last = len([known for known in self.known if known.startswith("hidden.")]) - 1
            if last >= 0:
                return f"{asked}: it has hidden.0 to hidden.{last}"
            return f"{asked}: which of its layers is layer {index} must be said, as in {{{name}: {next(iter(self.tensors))}}}"
        steps = [known.rpartition("/")[2] for known in self.tensors]
        near = difflib.get_close_matches(path, self.tensors, n=3)
        last_step = difflib.get_close_matches(path.rpartition("/")[2], steps, n=3)
        near += [known for known, step in zip(self.tensors, steps, strict=True) if step in last_step and known not in near]
        return f"{asked}; near it: {', '.join(near[:4] or list(self.tensors)[-3:])}"


class _Level:
    """A graph and where it is nested: the whole model, or a model called in it."""

    def __init__(self, graph, parent=None, parent_node=None):
        self.graph, self.parent, self.parent_node = graph, parent, parent_node
        depths = graph._nodes_by_depth
        self.nodes = [node for depth in sorted(depths, reverse=True) for node in depths[depth] if not node.is_input]
        self.children = {}
        self.calls = collections.defaultdict(list)
        for node in self.nodes:
            self.calls[node.operation].append(node)
        for operation, nodes in self.calls.items():
            nodes.sort(key=operation._inbound_nodes.index)  # in the order of the calls, whatever their depths

    def label(self, node) -> str:
        """A node's step in a path."""
        calls = self.calls[node.operation]
        return node.operation.name + (f"@{calls.index(node)}" if len(calls) > 1 else "")

    def leading_to(self, goal: set, opened: set):
        """The nodes that the symbols with ids `goal`, and the nodes `opened`, depend on; and the ids of what these give out."""
        needed, nodes = set(goal), set()
        for node in reversed(self.nodes):
            if node in opened or any(id(symbol) in needed for symbol in node.outputs):
                nodes.add(node)
                needed |= {id(symbol) for symbol in node.input_tensors}
        return nodes, needed


class _Run:
    """One pass through a model for some (level, symbol) pairs; `values[level][id(symbol)]` holds them afterwards."""

    def __init__(self, found, training):
        self.training = training
        self.values = {}
        self.goals, self.opened = collections.defaultdict(set), collections.defaultdict(set)
        for level, symbol in found:
            self.goals[level].add(id(symbol))
            while level.parent is not None:
                self.opened[level.parent].add(level.parent_node)
                level = level.parent

    def __call__(self, level, inputs, mask=None, training=None, whole=False):
        """Computes a level's goals, and with `whole` its graph's outputs too."""
        training = self.training if self.training is not None else training
        graph, opened = level.graph, self.opened[level]
        tensors = graph._standardize_inputs(inputs)
        for tensor, one in zip(tensors, tree.flatten(mask) if mask is not None else [], strict=False):
            if one is not None:
                set_keras_mask(tensor, one)
        values = self.values[level] = {id(symbol): tensor for symbol, tensor in zip(graph.inputs, tensors, strict=True)}
        goal = self.goals[level] | ({id(symbol) for symbol in graph.outputs} if whole else set())
        todo, needed = level.leading_to(goal, opened)
        for node in level.nodes:
            if node not in todo:
                continue
            args, kwargs = node.arguments.fill_in(values)
            if node in opened:
                wanted = any(id(symbol) in needed for symbol in node.outputs)
                outputs = self._open(level.children[node], args, kwargs, training, wanted)
            else:
                outputs = tree.flatten(operation_fn(node.operation, training=training)(*args, **kwargs))
            values |= {id(symbol): value for symbol, value in zip(node.outputs, outputs, strict=False)}

    def _open(self, level, args, kwargs, training, whole):
        """Runs a nested model's graph in place of calling it; returns its outputs, flat, where `whole`."""
        inputs = args[0] if args else kwargs["inputs"]
        mask = kwargs.get("mask")
        if mask is None:
            mask = tree.map_structure(get_keras_mask, inputs)
        self(level, inputs, mask, kwargs.get("training") if training is None else training, whole)
        return [self.values[level][id(symbol)] for symbol in level.graph.outputs] if whole else []


def _keys(node):
    """What tells a node's outputs apart in a path: nothing for one, `:key` or `:0` for several."""
    graph = graph_of(node.operation)
    if graph is not None and isinstance(graph.output, dict):
        return [":" + ".".join(str(step) for step in path) for path, _ in tree.flatten_with_path(graph.output)]
    return [""] if len(node.outputs) == 1 else [f":{index}" for index in range(len(node.outputs))]


def _activation(level, symbol):
    """What a symbol has been through in the layer that gives it out, looked for in nested models too."""
    for node in level.nodes:
        for index, output in enumerate(node.outputs):
            if output is symbol:
                child = level.children.get(node)
                return activation_of(node.operation) if child is None else _activation(child, child.graph.outputs[index])
    return "linear"
