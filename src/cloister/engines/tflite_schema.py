"""The parts of LiteRT's schema.fbs (version 3) that are accepted, and the operators.

Left out: custom operators and delegates (further code), control flow and further subgraphs (``WHILE`` may never end),
variables, hash tables and random operators (state between users), strings, sparse tensors, and data outside the
flatbuffer (``Buffer.offset``, external buffers). Quantised arithmetic too: kernels of LiteRT 2.3 end the process on
quantisation parameters they do not expect (SIGABRT, SIGSEGV), so operators that compute take float32, and other types
may only be moved, cast or, from float16, widened.
"""

from __future__ import annotations

from typing import Final

from cloister.engines.flatbuffer import Schema, Slot


def _slots(text: str) -> dict[int, Slot]:
    """``"name:kind name:kind"`` in slot order; ``-`` skips a slot."""
    fields = [part.partition(":") for part in text.split()]
    return {i: Slot(name, kind) for i, (name, _, kind) in enumerate(fields) if name != "-"}


_CONV: Final = "padding:int8 stride_w:int32 stride_h:int32"
_ACTIVATION: Final = "activation:int8"
_DILATION: Final = "dilation_w:int32 dilation_h:int32"

# BuiltinOptions, by number in the union.
_OPTIONS: Final = {
    1: f"{_CONV} {_ACTIVATION} {_DILATION} quantized_bias_type:int8",  # Conv2D
    2: f"{_CONV} depth_multiplier:int32 {_ACTIVATION} {_DILATION}",  # DepthwiseConv2D
    5: f"{_CONV} filter_width:int32 filter_height:int32 {_ACTIVATION}",  # Pool2D
    # FullyConnected
    8: f"{_ACTIVATION} weights_format:int8 keep_num_dims:bool asymmetric:bool quantized_bias_type:int8",
    9: "beta:float32",  # Softmax
    10: f"axis:int32 {_ACTIVATION}",  # Concatenation
    11: f"{_ACTIVATION} pot_scale_int16:bool",  # Add
    12: _ACTIVATION,  # L2Norm
    15: "- - align_corners:bool half_pixel_centers:bool",  # ResizeBilinear
    17: "new_shape:[int32]",  # Reshape
    19: "block_size:int32",  # SpaceToDepth
    21: _ACTIVATION,  # Mul
    22: "",  # Pad
    23: "axis:int32 batch_dims:int32",  # Gather
    26: "",  # Transpose
    27: "keep_dims:bool",  # Reducer
    28: f"{_ACTIVATION} pot_scale_int16:bool",  # Sub
    29: _ACTIVATION,  # Div
    30: "squeeze_dims:[int32]",  # Squeeze
    32: "begin_mask:int32 end_mask:int32 ellipsis_mask:int32 new_axis_mask:int32 shrink_axis_mask:int32 offset:bool",
    33: "",  # Exp
    35: "num_splits:int32",  # Split
    36: "",  # LogSoftmax
    37: "in_data_type:int8 out_data_type:int8",  # Cast
    38: "",  # Dequantize
    39: "",  # MaximumMinimum
    40: "output_type:int8",  # ArgMax
    42: "",  # Neg
    43: "",  # PadV2
    48: "",  # Slice
    49: f"{_CONV} {_ACTIVATION} quantized_bias_type:int8",  # TransposeConv
    52: "",  # ExpandDims
    56: "",  # Pow
    57: "output_type:int8",  # ArgMin
    59: "values_count:int32 axis:int32",  # Pack
    66: "",  # Square
    74: "align_corners:bool half_pixel_centers:bool",  # ResizeNearestNeighbor
    75: "alpha:float32",  # LeakyRelu
    76: "",  # SquaredDifference
    77: "mode:int8",  # MirrorPad
    78: "",  # Abs
    91: "",  # HardSwish
    94: "block_size:int32",  # DepthToSpace
    101: "adj_x:bool adj_y:bool asymmetric:bool",  # BatchMatMul
    116: "approximate:bool",  # Gelu
}

SCHEMA: Final[Schema] = {
    "Model": _slots(
        "version:uint32 operator_codes:[OperatorCode] subgraphs:[SubGraph] description:text buffers:[Buffer]"
        " metadata_buffer:[int32] metadata:[Metadata] signature_defs:[SignatureDef]"
    ),
    "OperatorCode": _slots("deprecated_builtin_code:int8 custom_code:text version:int32 builtin_code:int32"),
    "SubGraph": _slots("tensors:[Tensor] inputs:[int32] outputs:[int32] operators:[Operator] name:text"),
    "Tensor": _slots(
        "shape:[int32] type:int8 buffer:uint32 name:text quantization:Quantization is_variable:bool - "
        "shape_signature:[int32] has_rank:bool"
    ),
    "Quantization": _slots(
        "min:[float32] max:[float32] scale:[float32] zero_point:[int64] - - quantized_dimension:int32"
    ),
    "Operator": _slots(
        "opcode_index:uint32 inputs:[int32] outputs:[int32] options_type:uint8 options:union:options_type - "
        "custom_options_format:int8 - intermediates:[int32]"
    ),
    "Buffer": _slots("data:blob"),
    "Metadata": _slots("name:text buffer:uint32"),
    "SignatureDef": _slots("inputs:[TensorMap] outputs:[TensorMap] signature_key:text - subgraph_index:uint32"),
    "TensorMap": _slots("name:text tensor_index:uint32"),
    **{f"union:{number}": _slots(text) for number, text in _OPTIONS.items()},
}

DATATYPES: Final = {
    0: ("FP32", 4),
    1: ("FP16", 2),
    2: ("INT32", 4),
    3: ("UINT8", 1),
    4: ("INT64", 8),
    6: ("BOOL", 1),
    7: ("INT16", 2),
    9: ("INT8", 1),
    10: ("FP64", 8),
    12: ("UINT64", 8),
    15: ("UINT32", 4),
    16: ("UINT16", 2),
}
"""TensorType to OIP datatype and bytes an element."""

POSITIVE: Final = frozenset({"stride_w", "stride_h", "filter_width", "filter_height", "block_size", "num_splits"})
"""Options that kernels divide by; their default, where absent, is 0."""
POSITIVE_OR_ABSENT: Final = frozenset({"dilation_w", "dilation_h", "depth_multiplier", "values_count"})

MANY: Final = 1024
_BINARY: Final = (0, 18, 23, 34, 36, 39, 40, 41, 42, 49, 54, 55, 56, 57, 70, 74, 78, 79, 82, 89, 97, 99, 100, 126)
ARITY: Final = {
    **dict.fromkeys(_BINARY, (2, 2)),
    **dict.fromkeys((3, 4, 60, 65), (3, 3)),  # convolutions have a bias: without one, DEPTHWISE_CONV_2D reads address 0
    2: (1, MANY),  # CONCATENATION
    9: (2, 3),  # FULLY_CONNECTED
    22: (1, 2),  # RESHAPE
    45: (4, 4),  # STRIDED_SLICE
    67: (3, 4),  # TRANSPOSE_CONV
    83: (1, MANY),  # PACK
}
"""Fewest and most inputs, by operator; exactly one where it is not listed. Not all kernels count."""
SPLIT: Final = 49  # the only one with several outputs
FULLY_CONNECTED: Final = 9  # the only one that may leave its bias out by giving -1

MOVING: Final = frozenset({2, 22, 34, 36, 39, 43, 45, 49, 60, 65, 70, 83, 100})
"""Operators that move values of any type: their output's type is their first input's."""
CAST: Final = 53
DEQUANTIZE: Final = 6
INDEXING: Final = frozenset({56, 79})  # ARG_MAX, ARG_MIN: from float32 to an integer
GATHER: Final = 36  # its second input holds integers

CONSTANT_INPUTS: Final = {
    **dict.fromkeys((22, 23, 34, 39, 40, 56, 70, 74, 79, 82, 89, 97, 100), (1,)),
    **dict.fromkeys((49, 67), (0,)),  # SPLIT's axis, TRANSPOSE_CONV's output shape
    60: (1,),  # PADV2
    65: (1, 2),  # SLICE
    45: (1, 2, 3),  # STRIDED_SLICE
}
"""Inputs that decide shapes, by operator: they must be constants, so that every shape is known before a request runs
(LiteRT 2.3 ends the process where RESIZE_BILINEAR meets an image of no rows)."""

# BuiltinOperator to the number of its options in the union; 0 where it has none.
OPERATORS: Final = {
    0: 11,  # ADD
    1: 5,  # AVERAGE_POOL_2D
    2: 10,  # CONCATENATION
    3: 1,  # CONV_2D
    4: 2,  # DEPTHWISE_CONV_2D
    5: 94,  # DEPTH_TO_SPACE
    6: 38,  # DEQUANTIZE
    8: 0,  # FLOOR
    9: 8,  # FULLY_CONNECTED
    11: 12,  # L2_NORMALIZATION
    14: 0,  # LOGISTIC
    17: 5,  # MAX_POOL_2D
    18: 21,  # MUL
    19: 0,  # RELU
    20: 0,  # RELU_N1_TO_1
    21: 0,  # RELU6
    22: 17,  # RESHAPE
    23: 15,  # RESIZE_BILINEAR
    25: 9,  # SOFTMAX
    26: 19,  # SPACE_TO_DEPTH
    28: 0,  # TANH
    34: 22,  # PAD
    36: 23,  # GATHER
    39: 26,  # TRANSPOSE
    40: 27,  # MEAN
    41: 28,  # SUB
    42: 29,  # DIV
    43: 30,  # SQUEEZE
    45: 32,  # STRIDED_SLICE
    47: 33,  # EXP
    49: 35,  # SPLIT
    50: 36,  # LOG_SOFTMAX
    53: 37,  # CAST
    54: 0,  # PRELU
    55: 39,  # MAXIMUM
    56: 40,  # ARG_MAX
    57: 39,  # MINIMUM
    59: 42,  # NEG
    60: 43,  # PADV2
    65: 48,  # SLICE
    67: 49,  # TRANSPOSE_CONV
    70: 52,  # EXPAND_DIMS
    73: 0,  # LOG
    74: 27,  # SUM
    75: 0,  # SQRT
    76: 0,  # RSQRT
    78: 56,  # POW
    79: 57,  # ARG_MIN
    82: 27,  # REDUCE_MAX
    83: 59,  # PACK
    89: 27,  # REDUCE_MIN
    92: 66,  # SQUARE
    97: 74,  # RESIZE_NEAREST_NEIGHBOR
    98: 75,  # LEAKY_RELU
    99: 76,  # SQUARED_DIFFERENCE
    100: 77,  # MIRROR_PAD
    101: 78,  # ABS
    104: 0,  # CEIL
    111: 0,  # ELU
    116: 0,  # ROUND
    117: 91,  # HARD_SWISH
    126: 101,  # BATCH_MATMUL
    150: 116,  # GELU
}
