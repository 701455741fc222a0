"""Reads documents from files, folders, tables, treebanks and standard input, lazily and identically each time.

| input | documents |
|---|---|
| any text file (`.txt`, `.md`, `.py`, no suffix …) | one, named after the file |
| `.jsonl`, `.ndjson` | one a line: `text`, and if there `name` or `id`, `domain`, `language`, `labels` |
| `.csv`, `.tsv`, `.parquet` | one a row, with the same columns |
| `.conllu` | one a `# newdoc`, else one; the gold parts of speech become the label `upos` |
| a folder | those of its files, in the order of their names; a sub-folder is a domain |
| `-` | one, from standard input |

Any of the files may be compressed with gzip (`.gz`) or Zstandard (`.zst`). Text is UTF-8 and kept exactly, line endings
and all; a byte order mark at the start of a file is no part of the text. A binary file is refused, not guessed at.

In a folder, a file's domain is the sub-folder of the first level that it lies in, however deep; a file directly in
the folder has none. A domain that is called after a language (`french`, `fr`) gives its texts that language, so that
none is tagged as English; `language` is for documents that do not say theirs. Hidden files, `__pycache__` and files
of no bytes are left out. So are rows with an empty text: they hold no token. A name is the path relative to the
folder, or the file's own name; where a file holds many documents, `#n` is added, with n the line (JSONL) or the row,
counted from one. No two documents of a corpus may share a name.

It does not know tokens, models or runs. A text file is read whole, for it is one document; JSONL, CSV, Parquet and
CoNLL-U are streamed.
"""

from moe_probe.corpus.document import Document, Span
from moe_probe.corpus.inputs import Input, read_documents
from moe_probe.corpus.languages import CODE_LANGUAGES

__all__ = ["CODE_LANGUAGES", "Document", "Input", "Span", "read_documents"]
