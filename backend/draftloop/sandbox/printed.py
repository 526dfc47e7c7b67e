"""What a script prints, as far as it is kept."""

from dataclasses import dataclass, field

from draftloop.runs.job import size


@dataclass
class PrintedText:
    """The head and the tail of a stream, each half of what is kept."""

    keep: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    total: int = 0

    def add(self, chunk: bytes) -> None:
        """Take in what was printed next."""
        self.total += len(chunk)
        room = self.keep // 2 - len(self.head)
        if room > 0:
            self.head += chunk[:room]
            chunk = chunk[room:]
        self.tail += chunk
        if len(self.tail) > 2 * self.keep:
            del self.tail[: -self.keep]

    def text(self, hidden: tuple[str, ...]) -> tuple[str, int]:
        """Return the text, with paths hidden and the cut marked, and how many bytes were cut."""
        room = self.keep - self.keep // 2
        tail = bytes(self.tail[-room:]) if len(self.tail) > room else bytes(self.tail)
        cut = self.total - len(self.head) - len(tail)
        parts = [bytes(self.head).decode(errors="replace"), tail.decode(errors="replace")]
        if not cut:
            parts = [(bytes(self.head) + tail).decode(errors="replace")]
        joined = f"\n[... {cut} bytes cut, {size(self.keep)} are kept ...]\n".join(parts)
        return hide_paths(joined, hidden).replace("\0", "\N{REPLACEMENT CHARACTER}"), cut


def hide_paths(text: str, paths: tuple[str, ...]) -> str:
    """Return a text in which folders are the current one: what it says is the same on every machine."""
    for path in paths:
        text = text.replace(path, "" if path.endswith("/") else ".")
    return text
