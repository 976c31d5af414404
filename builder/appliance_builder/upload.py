"""One blob into a registry, whatever happens on the way: cut lines, lost sessions, lost answers, ended tokens.

    begin ──▶ send a part ──▶ all there? ──▶ earn the digest ──▶ commit ──▶ stored
      ▲            │ broken            ▲                           │ no clear answer
      │            ▼                   │                           ▼
      └──lost── ask the status ──known─┘        lost ◀── is the blob there? ──▶ stored

The registry is asked where it is; what was sent is never taken for what arrived. A blob has no name before its digest
was earned, because the digest is its name.
"""

from __future__ import annotations

from typing import Final

from appliance_builder.network_errors import NetworkError
from appliance_builder.outgoing import Outgoing
from appliance_builder.ports import Payload, Transfer
from appliance_builder.quirks import Mode, Quirks
from appliance_builder.registry import Repository
from appliance_builder.registry_errors import RegistryError
from appliance_builder.sessions import UploadState
from appliance_builder.upload_requests import COMMIT_BYTES_PER_S, Session, received
from appliance_builder.upload_source import UploadSource
from appliance_builder.waiting import Patience
from appliance_builder.ways import WRONG_WAY, Ways
from appliance_image.digest import Digest

_ACCEPTED: Final = (200, 201, 202, 204)
_LOST_SESSIONS: Final = 6  # with bytes in them; a registry that loses more will lose the next one too
_LOOKS: Final = 4  # for a blob whose commit had no clear answer
_NOTED_BYTES: Final = 64 * 1024 * 1024  # what a registry puts together before anybody could read that it does
_GONE: Final = (400, 404, 410)  # BLOB_UPLOAD_INVALID and BLOB_UPLOAD_UNKNOWN; codes are not always given

Failure = NetworkError | RegistryError


class _SessionLostError(Exception):
    """Begin anew; `cause` is what to tell the user if that has been done often enough, `cut` whether it was a broken
    connection that the session did not survive."""

    def __init__(self, cause: Failure, *, cut: bool = False) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.cut = cut


def upload(
    repository: Repository, payload: Payload, transfer: Transfer, *, quirks: Quirks, state: UploadState | None = None
) -> Digest:
    """Returns once the registry has confirmed the blob. Errors of `payload` end the upload and come out unchanged."""
    known = payload.known_digest
    if known and repository.blob_size(known) == payload.size:
        transfer.advance(payload.size)
        return known
    return _Upload(repository, payload, transfer, quirks=quirks, state=state).run()


class _Upload:
    def __init__(
        self,
        repository: Repository,
        payload: Payload,
        transfer: Transfer,
        *,
        quirks: Quirks,
        state: UploadState | None,
    ) -> None:
        self._repository = repository
        self._requests = repository.uploads
        self._payload = payload
        self._source = UploadSource(payload, transfer)
        self._quirks = quirks
        self._state = state if quirks.resumable else None
        self._ways = Ways(quirks, size=payload.size, digest_known=payload.known_digest is not None)
        self._patience = repository.transport.patience(self._note)
        self._transfer = transfer
        self._session: Session | None = None
        self._furthest = 0  # sent in this session
        self._confirmed = 0  # by the registry, after a part that did not go through
        self._broken = False  # this session has seen a connection end: bytes of it may still be arriving
        self._lost = 0
        self._invalid_at: set[int] = set()  # offsets
        self._remark = ""  # beside the bar while there is nothing to wait for
        self._refused = 0
        self._look_first = False
        self._doing = (
            f"uploading {payload.known_digest.short if payload.known_digest else 'a layer'} to {repository.host}"
        )

    def run(self) -> Digest:
        try:
            while True:
                try:
                    digest = self._attempt()
                except _SessionLostError as lost:
                    self._begin_anew(lost.cause)
                    if lost.cut:
                        smaller = ": now in smaller requests" if self._ways.cut() else ""
                        self._remark = f"this registry keeps nothing of a broken upload{smaller}"
                else:
                    self._forget()
                    self._transfer.note("")
                    return digest
        except BaseException as error:
            self._end(error)
            raise

    def _attempt(self) -> Digest:
        session, offset = self._resumed() or (self._requests.begin(self._patience), 0)
        self._keep(session)
        if self._ways.mode is Mode.WHOLE and (known := self._payload.known_digest):
            return self._put_whole(session, known)
        while offset < self._source.size:
            offset = self._send(offset)
        return self._commit(self._source.earned_digest())

    def _resumed(self) -> tuple[Session, int] | None:
        """What an earlier process began, as far as the registry still knows it."""
        saved = self._state.load() if self._state else None
        if saved is None or self._ways.mode is Mode.WHOLE:
            return None
        try:
            found = self._requests.status(saved, self._patience)
        except RegistryError as error:
            if not error.transient:
                raise
            return self._instead(saved)
        self._broken = found is not None
        return found if found and found[1] <= self._source.size else None

    def _instead(self, saved: Session) -> tuple[Session, int]:
        """Of a session that has been in trouble for as long as patience lasts, a new one; where the whole registry is
        in trouble this one try fails, too, and what was saved stays."""
        session = self._requests.begin(self._patience)
        self._patience.progressed()
        self._requests.cancel(saved.location)
        return session, 0

    # --- sending

    def _send(self, offset: int) -> int:
        """One part; returns where the registry is afterwards."""
        session = self._current()
        left = self._source.size - offset
        size = self._ways.part_size(left, least=session.chunk_least, most=session.chunk_most)
        end = offset + size
        body = Outgoing(
            self._source.part(offset, size, progressed=self._progressed),
            None if self._ways.mode is Mode.UNSIZED else size,
        )
        ranged = self._ways.mode is Mode.CHUNKED or offset > 0 or self._broken
        try:
            with self._requests.send(
                session, body, offset=offset, size=size, doing=self._doing, ranged=ranged
            ) as answer:
                finished = answer.status == 201  # some registries end an upload by themselves
                if answer.status not in _ACCEPTED or (finished and end < self._source.size):
                    raise self._requests.refusal(answer, self._doing)
                session = self._requests.advanced(session, answer)
                confirmed = received(answer.headers)
        except (NetworkError, RegistryError) as error:
            return self._recover(error, offset)
        self._look_first = finished
        if not finished:
            self._keep(session)
        self._patience.progressed()
        return confirmed if confirmed and offset < confirmed < end else end

    def _recover(self, error: Failure, offset: int) -> int:
        """A part did not go through. Where to go on, if the registry knows; else the session is lost."""
        if self._source.error is not None:
            raise self._source.error
        self._source.leave()
        status = error.status if isinstance(error, RegistryError) else None
        if status in WRONG_WAY and not (status == 416 and (offset or self._broken)):
            raise self._another_way(error)
        if status in _GONE:
            raise self._gone(error, offset)
        self._broken = True
        if status not in (401, 416) and not self._repository.transport.retry(error, self._patience):
            raise error
        if status in (401, 416) and not self._patience.wait(error):
            raise error
        resumable = self._quirks.resumable and self._ways.mode is not Mode.UNSIZED  # which cannot say where it goes on
        found = self._requests.status(self._current(), self._patience) if resumable else None
        if found is None or found[1] > self._source.size or (status == 416 and found[1] == offset):
            raise _SessionLostError(error, cut=True)
        self._keep(found[0])
        if found[1] > max(offset, self._confirmed):  # a proxy that takes everything at once hands it on for long
            self._confirmed = found[1]
            self._patience.progressed()
        return found[1]

    def _another_way(self, error: Failure) -> _SessionLostError | Failure:
        if not self._ways.refused(error.status if isinstance(error, RegistryError) else 0):
            return error
        self._furthest = 0  # a refusal of the way loses nothing that counts
        return _SessionLostError(error)

    def _gone(self, error: Failure, offset: int) -> _SessionLostError | Failure:
        """400 is what some registries say of a session that is gone, and others of a layer that they do not want: twice
        in one place, of a session that nothing happened to, it is the latter."""
        if isinstance(error, RegistryError) and error.status == 400 and not self._broken:
            if offset in self._invalid_at:
                error.hint = f"{error.host} may limit the size of a layer: its log says more"
                return error
            self._invalid_at.add(offset)
        return _SessionLostError(error, cut=self._broken and offset < self._source.size)

    # --- ending

    def _commit(self, digest: Digest) -> Digest:
        unclear = self._look_first
        patience = self._commit_patience()
        while True:
            if unclear and self._stored(digest):
                return digest
            self._note_end()
            error = self._requests.put(self._current(), digest, b"", doing=self._doing, size=self._source.size)
            if error is None:
                return digest
            if error.transient:
                unclear = True
                if patience.wait(error):
                    continue
                if self._furthest or isinstance(error, NetworkError):
                    raise error
                raise _SessionLostError(error)  # an earlier run sent all of it, and its commit came to nothing either
            if isinstance(error, RegistryError) and error.status in (*_GONE, 416):
                if self._stored(digest, looks=_LOOKS if unclear else 1):
                    return digest
                raise _SessionLostError(error) if unclear else self._gone(error, self._source.size)
            raise error

    def _put_whole(self, session: Session, digest: Digest) -> Digest:
        chunks = self._source.part(0, self._source.size, progressed=self._progressed, earn_first=True)
        body = Outgoing(chunks, self._source.size)
        error = self._requests.put(session, digest, body, doing=self._doing, size=self._source.size)
        if error is None:
            return digest
        if self._source.error is not None:
            raise self._source.error
        self._source.leave()
        status = error.status if isinstance(error, RegistryError) else None
        if self._source.sent == self._source.size and error.transient and self._stored(digest):
            return digest
        if status in WRONG_WAY:
            raise self._another_way(error)
        if not error.transient and status not in (*_GONE, 401):
            raise error
        raise self._gone(error, 0)

    def _stored(self, digest: Digest, *, looks: int = _LOOKS) -> bool:
        """Whether a commit went through after all; a registry may take a while to show it."""
        patience = self._commit_patience()
        for look in range(looks):
            if self._repository.blob_size(digest, patience=patience) == self._source.size:
                return True
            if look + 1 < looks:
                patience.pause(look)
        return False

    def _commit_patience(self) -> Patience:
        """A registry may have to move the bytes to their place, which takes the longer the more there are."""
        return self._repository.transport.patience(self._note, at_least_s=self._source.size / COMMIT_BYTES_PER_S)

    # --- the session's life

    def _begin_anew(self, cause: Failure) -> None:
        self._source.leave()
        self._lost += bool(self._furthest)
        self._refused += isinstance(cause, RegistryError) and cause.code == "DIGEST_INVALID"
        if self._refused > 1 or not self._patience.wait(cause):
            raise cause
        if self._lost > _LOST_SESSIONS:
            raise RegistryError(
                f"{self._doing}: the registry lost the upload {self._lost} times: "
                f"{cause.message.removeprefix(f'{self._doing}: ')}",
                hint="several registries behind one name need one storage and one `http.secret`; "
                "a proxy between may end long requests: try `--chunk-size 64`",
                host=self._repository.host,
                status=404,
            )
        if self._session and isinstance(cause, RegistryError) and cause.status not in _GONE:
            self._requests.cancel(self._session.location)
        self._forget()
        self._session, self._furthest, self._confirmed = None, 0, 0
        self._look_first, self._broken = False, False

    def _progressed(self, sent: int) -> None:
        """Only what no earlier try of this session reached counts."""
        if sent > self._furthest:
            self._furthest = sent
            self._patience.progressed()
        if sent == self._source.size:
            self._note_end()

    def _note(self, text: str) -> None:
        self._transfer.note(text or self._remark)

    def _note_end(self) -> None:
        """Nothing moves any more, for minutes where the registry copies what it has."""
        if self._source.size > _NOTED_BYTES:
            self._transfer.note("the registry puts the layer together")

    def _current(self) -> Session:
        if self._session is None:
            raise AssertionError("no session")
        return self._session

    def _keep(self, session: Session) -> None:
        self._session = session
        if self._state:
            self._state.save(session)

    def _end(self, error: BaseException) -> None:
        """Interrupted, or out of patience: a later run may go on. Anything else: nobody will want these bytes."""
        gave_up = self._source.error is None and isinstance(error, NetworkError | RegistryError) and error.transient
        if self._state and (gave_up or not isinstance(error, Exception)):
            return
        if self._session and not gave_up:
            self._requests.cancel(self._session.location)
        self._forget()

    def _forget(self) -> None:
        if self._state:
            self._state.clear()
