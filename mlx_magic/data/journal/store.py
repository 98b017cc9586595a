"""The journal: one SQLite file with answers, and what is known about files."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_magic.data.journal.location import is_shared, make_folder
from mlx_magic.errors import RequestError
from mlx_magic.formatting import reason, shown

_APPLICATION = 0x6D6C786D  # "mlxm"
VERSION = 1
"""Of the tables. A file of a higher one is left alone."""

_TABLES = """
CREATE TABLE IF NOT EXISTS maps (
    id INTEGER PRIMARY KEY, began REAL NOT NULL, prompt TEXT NOT NULL, model TEXT NOT NULL,
    images TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, map INTEGER NOT NULL, source TEXT NOT NULL, question TEXT NOT NULL,
    result TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    path TEXT NOT NULL, variant TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (path, variant)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_map ON answers (map);
"""

_WAIT = 30.0
"""Seconds that a write waits for another notebook's."""

_MANY = 500


class JournalError(RequestError):
    """Raised when a journal cannot be used: no journal, a newer one, read-only, a full disk."""

    def __init__(self, message: str) -> None:
        super().__init__(message, option="journal")


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file is still the same, without reading it.

    Attributes
    ----------
    path : str
    size : int
        Bytes.
    mtime_ns : int
        Nanoseconds.
    inode : int
    """

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the state of a file now.

        Raises
        ------
        OSError
        """
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns, status.st_ino)

    @property
    def is_settled(self) -> bool:
        """Whether its time tells: a file may change twice within one tick of the clock."""
        return time.time_ns() - self.mtime_ns > 2_000_000_000


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One map of a journal.

    Attributes
    ----------
    id : int
    began : float
        Seconds since 1970.
    prompt, model, images : str
    answers : int
        Answers that are stored.
    nbytes : int
        Bytes of these.
    """

    id: int
    began: float
    prompt: str
    model: str
    images: str
    answers: int
    nbytes: int


class Journal:
    """A journal file, open for reading and writing; safe from any thread.

    Parameters
    ----------
    path : Path
        Made if it does not exist.

    Raises
    ------
    JournalError
        It is another kind of file, of a newer version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with _errors(path):
            make_folder(path)
            new = not path.exists() or path.stat().st_size == 0
            self._db = sqlite3.connect(
                path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
            try:
                self._open(new)
            except BaseException:
                self._db.close()
                raise

    def _open(self, new: bool) -> None:
        name = shown(str(self.path))
        if not new:
            # In one transaction: another map may be making the file right now.
            self._db.execute("BEGIN")
            empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            self._db.execute("COMMIT")
            if application != _APPLICATION and not (empty and application == 0):
                raise JournalError(f"{name} is another program's database: choose another path.")
            if version > VERSION:
                raise JournalError(
                    f"{name} was written by a newer mlx-magic (version {version}, this one reads "
                    f"{VERSION}): update it, or choose another path."
                )
        # Before the first write, as it cannot be changed within a transaction.
        mode = "DELETE" if is_shared(self.path.parent) else "WAL"
        self._set_mode(mode)
        self._db.execute(
            "PRAGMA synchronous=NORMAL" if mode == "WAL" else "PRAGMA synchronous=FULL"
        )
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _TABLES.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id={_APPLICATION}")
        self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute("COMMIT")

    def _set_mode(self, mode: str) -> None:
        """Set the journal mode; SQLite does not wait for others that do the same."""
        until = time.monotonic() + _WAIT
        while True:
            try:
                self._db.execute(f"PRAGMA journal_mode={mode}")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def close(self) -> None:
        """Close the file."""
        with self._lock, _errors(self.path):
            self._db.close()

    def begin_map(self, prompt: str, model: str, images: str) -> int:
        """Record a map, and return its number."""
        with self._lock, _errors(self.path):
            found = self._db.execute(
                "SELECT id FROM maps WHERE prompt=? AND model=? AND images=? ORDER BY id LIMIT 1",
                (prompt, model, images),
            ).fetchone()
            if found is not None:
                # Run again: it goes on with the same entry.
                self._db.execute("UPDATE maps SET began=? WHERE id=?", (time.time(), found[0]))
                return int(found[0])
            cursor = self._db.execute(
                "INSERT INTO maps (began, prompt, model, images) VALUES (?, ?, ?, ?)",
                (time.time(), prompt, model, images),
            )
            return int(cursor.lastrowid or 0)

    def find(self, key: bytes) -> str | None:
        """Return the stored answer of a key."""
        with self._lock, _errors(self.path):
            found = self._db.execute("SELECT result FROM answers WHERE key=?", (key,)).fetchone()
            return None if found is None else str(found[0])

    def add(
        self,
        answers: Sequence[tuple[bytes, int, str, str, str]],
        files: Sequence[tuple[FileState, str, str]] = (),
    ) -> None:
        """Store answers and digests of files in one transaction.

        Parameters
        ----------
        answers : sequence
            Key, map, source, question and result of each.
        files : sequence
            See `remember`.
        """
        with self._lock, _errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", answers
                )
                for file in files:
                    self.remember(*file)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def digest(self, file: FileState, variant: str) -> str | None:
        """Return the remembered digest of a file that is still the same.

        Parameters
        ----------
        file : FileState
        variant : str
            What else decides the digest, such as the size that an image is scaled to.
        """
        with self._lock, _errors(self.path):
            found = self._db.execute(
                "SELECT digest FROM files WHERE path=? AND variant=? AND size=? AND mtime_ns=? "
                "AND inode=?",
                (file.path, variant, file.size, file.mtime_ns, _signed(file.inode)),
            ).fetchone()
            return None if found is None else str(found[0])

    def remember(self, file: FileState, variant: str, digest: str) -> None:
        """Remember the digest of a file, if its time is old enough to tell a later change."""
        if not file.is_settled:
            return
        with self._lock, _errors(self.path):
            self._db.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)",
                (file.path, variant, file.size, file.mtime_ns, _signed(file.inode), digest),
            )

    def entries(self) -> list[JournalEntry]:
        """Return its maps, the newest first."""
        with self._lock, _errors(self.path):
            found = self._db.execute(
                "SELECT m.id, m.began, m.prompt, m.model, m.images, count(a.key), "
                "coalesce(sum(length(a.result)), 0) FROM maps m LEFT JOIN answers a ON a.map=m.id "
                "GROUP BY m.id ORDER BY m.began DESC, m.id DESC"
            ).fetchall()
            return [JournalEntry(*row) for row in found]

    def forget(self, number: int | None) -> int:
        """Delete the answers of a map, or all; return how many there were.

        Raises
        ------
        JournalError
            There is no map of this number.
        """
        with self._lock, _errors(self.path):
            if number is None:
                deleted = self._db.execute("DELETE FROM answers").rowcount
                self._db.execute("DELETE FROM maps")
                self._db.execute("DELETE FROM files")
            else:
                if not self._db.execute("SELECT 1 FROM maps WHERE id=?", (number,)).fetchone():
                    raise JournalError(f"{shown(str(self.path))} has no map {number}.")
                deleted = self._db.execute("DELETE FROM answers WHERE map=?", (number,)).rowcount
                self._db.execute("DELETE FROM maps WHERE id=?", (number,))
            self._db.execute("VACUUM")
            return int(deleted)

    def export(self, path: Path, number: int | None = None) -> int:
        """Write the answers as lines of JSON; return how many there are.

        Each has the map's number, prompt and model, the source of the image, the question's name,
        and the fields of the result.

        Raises
        ------
        JournalError
            The file cannot be written.
        """
        with self._lock, _errors(self.path):
            rows: Iterable[tuple[int, str, str, str, str, str]] = self._db.execute(
                "SELECT m.id, m.prompt, m.model, a.source, a.question, a.result FROM answers a "
                "JOIN maps m ON m.id=a.map WHERE ? IS NULL OR m.id=? ORDER BY m.id, a.source",
                (number, number),
            ).fetchall()
        count = 0
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                for map_id, prompt, model, source, question, result in rows:
                    line = {
                        "map": map_id,
                        "prompt": prompt,
                        "model": model,
                        "image": source,
                        "question": question,
                        "result": json.loads(result),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    count += 1
            partial.replace(path)
        except (OSError, ValueError) as error:
            partial.unlink(missing_ok=True)
            raise JournalError(f"{shown(str(path))} cannot be written: {reason(error)}.") from error
        return count

    @property
    def nbytes(self) -> int:
        """Bytes on the disk, with those that are not merged yet."""
        return sum(
            path.stat().st_size
            for path in (self.path, self.path.with_name(f"{self.path.name}-wal"))
            if path.exists()
        )


def _signed(inode: int) -> int:
    """Return an inode as an SQLite integer, which has a sign."""
    return inode - 2**64 if inode >= 2**63 else inode


class _errors:  # noqa: N801 - a context manager
    """Translates the errors of SQLite and the disk to one line."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        name = shown(str(self._path))
        if isinstance(error, sqlite3.DatabaseError):
            text = str(error)
            if "full" in text:
                said = "the disk is full"
            elif "readonly" in text or "read-only" in text or "unable to open" in text:
                said = "its folder cannot be written to"
            elif "not a database" in text or "malformed" in text:
                raise JournalError(
                    f"{name} is no journal, or is damaged: choose another path."
                ) from error
            elif "locked" in text or "busy" in text:
                said = "another program has locked it"
            else:
                said = reason(error)
            raise JournalError(f"{name} cannot be used: {said}.") from error
        if isinstance(error, OSError):
            raise JournalError(f"{name} cannot be used: {reason(error)}.") from error
