"""The parts of onnx.proto that are accepted (github.com/onnx/onnx, onnx/onnx.proto, IR version 14).

Not accepted, by leaving them out: functions, training information, sparse tensors, sequences, optionals and maps as
types, attributes that refer to a function's, operator overloads, device configurations, tensor segments.
"""

from __future__ import annotations

from typing import Final

from cloister.engines.protobuf import Field, Schema

_PROPS: Final = Field("metadata_props", "StringStringEntryProto", repeated=True)

SCHEMA: Final[Schema] = {
    "ModelProto": {
        1: Field("ir_version", "int64"),
        2: Field("producer_name", "text"),
        3: Field("producer_version", "text"),
        4: Field("domain", "text"),
        5: Field("model_version", "int64"),
        6: Field("doc_string", "text"),
        7: Field("graph", "GraphProto"),
        8: Field("opset_import", "OperatorSetIdProto", repeated=True),
        14: _PROPS,
    },
    "OperatorSetIdProto": {1: Field("domain", "text"), 2: Field("version", "int64")},
    "StringStringEntryProto": {1: Field("key", "text"), 2: Field("value", "text")},
    "GraphProto": {
        1: Field("node", "NodeProto", repeated=True),
        2: Field("name", "text"),
        5: Field("initializer", "TensorProto", repeated=True),
        10: Field("doc_string", "text"),
        11: Field("input", "ValueInfoProto", repeated=True),
        12: Field("output", "ValueInfoProto", repeated=True),
        13: Field("value_info", "ValueInfoProto", repeated=True),
        16: _PROPS,
    },
    "NodeProto": {
        1: Field("input", "text", repeated=True),
        2: Field("output", "text", repeated=True),
        3: Field("name", "text"),
        4: Field("op_type", "text"),
        5: Field("attribute", "AttributeProto", repeated=True),
        6: Field("doc_string", "text"),
        7: Field("domain", "text"),
        9: _PROPS,
    },
    "AttributeProto": {
        1: Field("name", "text"),
        2: Field("f", "float"),
        3: Field("i", "int64"),
        4: Field("s", "bytes"),
        5: Field("t", "TensorProto"),
        6: Field("g", "GraphProto"),
        7: Field("floats", "float", repeated=True),
        8: Field("ints", "int64", repeated=True),
        9: Field("strings", "bytes", repeated=True),
        13: Field("doc_string", "text"),
        20: Field("type", "int64"),
    },
    "TensorProto": {
        1: Field("dims", "int64", repeated=True),
        2: Field("data_type", "int64"),
        4: Field("float_data", "float", repeated=True),
        5: Field("int32_data", "int64", repeated=True),
        6: Field("string_data", "bytes", repeated=True),
        7: Field("int64_data", "int64", repeated=True),
        8: Field("name", "text"),
        9: Field("raw_data", "bytes"),
        10: Field("double_data", "double", repeated=True),
        11: Field("uint64_data", "int64", repeated=True),
        12: Field("doc_string", "text"),
        13: Field("external_data", "StringStringEntryProto", repeated=True),
        14: Field("data_location", "int64"),
        16: _PROPS,
    },
    "ValueInfoProto": {
        1: Field("name", "text"),
        2: Field("type", "TypeProto"),
        3: Field("doc_string", "text"),
        4: _PROPS,
    },
    "TypeProto": {1: Field("tensor_type", "TypeProto.Tensor"), 6: Field("denotation", "text")},
    "TypeProto.Tensor": {1: Field("elem_type", "int64"), 2: Field("shape", "TensorShapeProto")},
    "TensorShapeProto": {1: Field("dim", "TensorShapeProto.Dimension", repeated=True)},
    "TensorShapeProto.Dimension": {
        1: Field("dim_value", "int64"),
        2: Field("dim_param", "text"),
        3: Field("denotation", "text"),
    },
}

ATTRIBUTE_TYPES: Final = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}
"""AttributeProto.AttributeType to the one field that holds the value."""

DATATYPES: Final = {
    1: ("FP32", 4, "float_data"),
    2: ("UINT8", 1, "int32_data"),
    3: ("INT8", 1, "int32_data"),
    4: ("UINT16", 2, "int32_data"),
    5: ("INT16", 2, "int32_data"),
    6: ("INT32", 4, "int32_data"),
    7: ("INT64", 8, "int64_data"),
    8: ("BYTES", 0, "string_data"),
    9: ("BOOL", 1, "int32_data"),
    10: ("FP16", 2, "int32_data"),
    11: ("FP64", 8, "double_data"),
    12: ("UINT32", 4, "uint64_data"),
    13: ("UINT64", 8, "uint64_data"),
    16: ("BF16", 2, "int32_data"),
}
"""TensorProto.DataType to OIP v2 datatype, bytes an element, and the field that holds values one by one."""
