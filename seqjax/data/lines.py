"""Lines of a text that ships with the package or that belongs to the user."""

import codecs
from importlib.resources import files
from pathlib import Path

from seqjax.errors import UserError, unknown_name
from seqjax.files import check_line, read_text_file


def read_lines(
    name: str, folder: str, what: str, form: str, max_megabytes: float
) -> list[tuple[str, str]]:
    """Each non-blank line, stripped, after its place ("my.txt, line 3") for use in messages.

    `name` is the stem of a text in corpora/`folder` or the path of a .txt file. `what` says what
    the text is and `form` what its lines must be, both for messages. Raises UserError for a file
    that is not there, is larger than `max_megabytes`, or holds no such text.
    """
    if name.endswith(".txt"):
        source = Path(name)
    else:
        corpus = files("seqjax.data") / "corpora" / folder
        stems = [path.name[:-4] for path in corpus.iterdir() if path.name.endswith(".txt")]
        if name not in stems:
            raise unknown_name(what, name, [*stems, "<path>.txt"])
        source = Path(str(corpus / f"{name}.txt"))
    try:
        data = read_text_file(source, max_megabytes)
    except OSError as error:
        message = f"cannot read the {what} {name}: {error.strerror}; give the path of a text file"
        raise UserError(message) from error
    lines = []
    # Bytes are split before they are decoded, so that a bad byte has a line number.
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        place = f"{name}, line {number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text; save the file as UTF-8") from error
        check_line(place, line)
        if line:
            lines.append((place, line))
    if not lines:
        raise UserError(f"{name}, line 1: the {what} is empty; write {form}")
    return lines
