"""Forms with files (multipart/form-data, RFC 7578), as browsers send them: whole in memory, within the page's bound."""

from dataclasses import dataclass
from email.message import Message

MAX_PARTS = 50
MAX_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form; `name` is what the browser called it."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class MultipartForm:
    """Texts and files, by the names of their fields; a file that was not chosen is not there."""

    texts: list[tuple[str, str]]
    files: dict[str, Upload]


def read_multipart(content_type: str, body: bytes) -> MultipartForm:
    """Take a form apart.

    Raises:
        ValueError: it is none, or it is cut off.
    """
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise ValueError("its boundary is missing")
    delimiter = b"\r\n--" + boundary.encode()
    pieces = (b"\r\n" + body).split(delimiter, MAX_PARTS + 1)
    if len(pieces) > MAX_PARTS + 1 or not pieces[-1].startswith(b"--"):
        raise ValueError(f"it is cut off, or has more than {MAX_PARTS} fields")
    form = MultipartForm([], {})
    for piece in pieces[1:-1]:
        _take(form, piece)
    return form


def _take(form: MultipartForm, piece: bytes) -> None:
    fields, found, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not found or len(fields) > MAX_HEAD_BYTES:
        raise ValueError("a field has no head, or a long one")
    disposition = Message()
    for line in fields.decode().split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            disposition["content-disposition"] = value.strip()
    name = disposition.get_param("name", header="content-disposition")
    file_name = disposition.get_param("filename", header="content-disposition")
    if name is None:
        raise ValueError("a field has no name")
    if file_name is None:
        form.texts.append((str(name), content.decode()))
    elif file_name or content:
        form.files[str(name)] = Upload(str(file_name), content)
