"""A little of ONNX: values that are named for you, and whole columns turned into codes and scaled numbers.

Operators of ai.onnx 17 and ai.onnx.ml 3, which every runtime of the last years has. A column is one input: double
[N] with NaN for null, or string [N] with "" for null.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sfumato.common.contract import Scale
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import FeatureSpec, scaled

OPSETS = (("", 17), ("ai.onnx.ml", 3))
IR_VERSION = 8
ML = "ai.onnx.ml"

Ints = npt.NDArray[np.int64]
Attribute = str | float | int | Sequence[float] | Sequence[int] | Sequence[str] | onnx.TensorProto


class Graph:
    """Nodes in the order in which they are added. A value is its name; ours hold a colon, which no column has."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: list[onnx.ValueInfoProto] = []

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> str:
        name = f"constant:{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """A node with one output. Returns that."""
        name = f"{operator}:{len(self._nodes)}"
        self._nodes.append(_node(operator, inputs, name, domain, attributes))
        return name

    def number(self, column: str) -> str:
        """The input of a column of numbers."""
        return self._input(column, TensorProto.DOUBLE, "a number; NaN where there is none")

    def text(self, column: str) -> str:
        """The input of a column of categories."""
        return self._input(
            column, TensorProto.STRING, 'a category, or "true" and "false"; "" where there is none'
        )

    def _input(self, column: str, kind: int, says: str) -> str:
        if column not in self._inputs:
            self._inputs[column] = helper.make_tensor_value_info(column, kind, ["N"], doc_string=says)
        return column

    def output(self, name: str, value: str, kind: int, says: str) -> None:
        """Give a value [N] out under this name; with underscores behind it if a column is called so."""
        free = name
        while free in self._inputs:
            free += "_"
        self._nodes.append(helper.make_node("Identity", [value], [free], f"output:{name}"))
        self._outputs.append(helper.make_tensor_value_info(free, kind, ["N"], doc_string=says))

    def model(self, name: str, says: str, facts: Mapping[str, str]) -> bytes:
        """The file, checked by ONNX's own checker. The same graph gives the same bytes."""
        graph = helper.make_graph(
            self._nodes, name, list(self._inputs.values()), self._outputs, self._constants, doc_string=says
        )
        made = helper.make_model(
            graph,
            producer_name="sfumato",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS],
        )
        helper.set_model_props(made, dict(facts))
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString(deterministic=True))

    # --- columns -----------------------------------------------------------------------------------------

    def category_codes(self, column: str, codes: Mapping[str, int], *, other: int, null: int) -> str:
        """Of each customer the category's code, int64 [N]. Raises BadInput where "" is itself a category."""
        if "" in codes:
            raise BadInput(
                f"column {column!r} has an empty category, which stands for null in ONNX",
                hint="Give that category a name in the contract and train again.",
            )
        return self.add(
            "LabelEncoder",
            self.text(column),
            domain=ML,
            keys_strings=["", *codes],
            values_int64s=[null, *codes.values()],
            default_int64=other,
        )

    def bins(self, number: str, cuts: Sequence[float]) -> str:
        """In which bin each number lies, int64 [N]: how many cuts are at most as large (none where it is NaN)."""
        column = self.add("Unsqueeze", number, self.constant([1], np.int64))
        reached = self.add("GreaterOrEqual", column, self.constant([list(cuts)]))
        return self.add("ReduceSum", self.integer(reached), self.constant([1], np.int64), keepdims=0)

    def integer(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.INT64)

    def double(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.DOUBLE)

    def unless_null(self, number: str, value: str, null: str) -> str:
        """`value`, or `null` where the number is NaN."""
        return self.add("Where", self.add("IsNaN", number), null, value)

    def clipped(self, spec: FeatureSpec) -> str:
        """A number within its public bounds, double [N]; the lower one where it is null."""
        assert spec.bounds is not None
        number = self.number(spec.name)
        low, high = (self.constant(b) for b in spec.bounds)
        return self.add("Clip", self.unless_null(number, number, low), low, high)

    def scaled(self, spec: FeatureSpec) -> str:
        """A number as nets and segments see it: double [N] in [-1, 1], of a float32's precision; 0 for null."""
        assert spec.bounds is not None
        value = self.clipped(spec)
        if spec.scale is Scale.LOG:
            size = self.add("Log", self.add("Add", self.add("Abs", value), self.constant(1.0)))
            value = self.add("Mul", self.add("Sign", value), size)
        low, high = scaled(np.array(spec.bounds), spec.scale).tolist()
        way = self.add("Mul", self.add("Sub", value, self.constant(low)), self.constant(2.0))
        unit = self.add("Sub", self.add("Div", way, self.constant(high - low)), self.constant(1.0))
        single = self.add("Cast", unit, to=TensorProto.FLOAT)
        return self.unless_null(spec.name, self.double(single), self.constant(0.0))

    def side_by_side(self, values: Sequence[str]) -> str:
        """Values [N] as one [N, how many]."""
        axis = self.constant([1], np.int64)
        return self.add("Concat", *(self.add("Unsqueeze", v, axis) for v in values), axis=1)


def _node(
    operator: str, inputs: Sequence[str], name: str, domain: str, attributes: Mapping[str, Attribute]
) -> onnx.NodeProto:
    node = helper.make_node(operator, inputs, [name], name, domain=domain)
    node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
    return node
