"""Lets Triton 3.6's interpreter run with numpy 2.4, multiply matrices of bfloat16, and take a third of the time."""

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

    _patch_lang, _np_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    _patched: set[int] = set()

    def _patch_lang_once(fn: Any) -> Any:
        """Each function that a kernel calls would patch all of the language again, which its launch has done."""
        modules = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
        if modules <= _patched:
            return interpreter._LangPatchScope()
        scope = _patch_lang(fn)
        _patched.update(modules)
        restore = scope.restore

        def restore_and_forget() -> None:
            restore()
            _patched.clear()

        scope.restore = restore_and_forget
        return scope

    interpreter._patch_lang = _patch_lang_once

    _known: dict[str, Any] = {}

    def _get_np_dtype_once(dtype: Any) -> Any:
        """It builds a table of all types whenever it is asked for one."""
        name = (dtype.element_ty if isinstance(dtype, tl.block_type) else dtype).name
        if name not in _known:
            _known[name] = _np_dtype(dtype)
        return _known[name]

    interpreter._get_np_dtype = _get_np_dtype_once

    def _init_tuple(self: Any, args: Any, type: Any = None) -> None:  # noqa: A002  Triton's name for it
        self.values = [*args]
        if type is not None:
            self.type = type if isinstance(type, tl.tuple_type) else tl.tuple_type(type)

    def _type_of_tuple(self: Any) -> Any:
        """Each value that a kernel computes has a shape, and each shape made this, which hardly anybody asks for."""
        if "type" not in self.__dict__:
            self.__dict__["type"] = tl.core._type_for_tuple_values(self.values)
        return self.__dict__["type"]

    tl.tuple.__init__ = _init_tuple
    tl.tuple.type = property(_type_of_tuple, lambda self, type: self.__dict__.update(type=type))  # noqa: A006
