"""One file of every dtype that we read, written by the reference writer (safetensors 0.8.0).

usage: make_safetensors.py OUT_DIR
OUT_DIR/mixed_dtypes.safetensors: values count up from 0; names that need escapes, a scalar, an empty tensor, equal dtypes that
only their names order. The test writes the same tensors and compares the bytes.
"""
import os
import sys

import torch
from safetensors.torch import save_file

dtypes = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
          "U64": torch.uint64, "I32": torch.int32, "U32": torch.uint32, "I16": torch.int16, "U16": torch.uint16,
          "I8": torch.int8, "U8": torch.uint8}
tensors = {f"of {n}": torch.arange(3).to(t) for n, t in dtypes.items()}
tensors["of BOOL"] = torch.tensor([False, True, True])
tensors["z"] = torch.arange(6, dtype=torch.float32).reshape(2, 3)
tensors["B"] = torch.arange(4, dtype=torch.float32).reshape(1, 2, 2)
tensors["scalar"] = torch.tensor(7.0)
tensors["empty"] = torch.zeros(0, 5)
tensors['quote " backslash \\ slash / tab \t bell \x07 del \x7f é 漢 😀'] = torch.arange(2, dtype=torch.uint8)
save_file(tensors, os.path.join(sys.argv[1], "mixed_dtypes.safetensors"), metadata={"format": "pt"})
os.chmod(os.path.join(sys.argv[1], "mixed_dtypes.safetensors"), 0o644)
