"""Lets Triton 3.6's interpreter run with numpy 2.4, and multiply matrices of bfloat16."""

import os
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        """A scalar is an array of one element there, which `int()` takes no longer: loops need one."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_tensor_and_index

    _create_dot = interpreter.InterpreterBuilder.create_dot

    def _create_dot_of_bfloat16(self: Any, a: Any, b: Any, *others: Any) -> Any:
        """The interpreter keeps bfloat16 as its bits, and would multiply those."""
        a, b = (
            interpreter.TensorHandle(self.cast_impl(x, tl.float32).data, tl.float32) if x.dtype == tl.bfloat16 else x
            for x in (a, b)
        )
        return _create_dot(self, a, b, *others)

    interpreter.InterpreterBuilder.create_dot = _create_dot_of_bfloat16
