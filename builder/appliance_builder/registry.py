"""One repository of one registry, by the OCI distribution specification: manifests, blobs, tags, rights."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Final, cast
from urllib.parse import quote

from appliance_builder.blobs import RegistryBlob
from appliance_builder.network_errors import NetworkError
from appliance_builder.ports import Content
from appliance_builder.registry_errors import RegistryError
from appliance_builder.transport import Reply, Transport
from appliance_builder.upload_requests import UploadRequests
from appliance_builder.waiting import Patience
from appliance_image.digest import Digest, DigestError
from appliance_image.oci import INDEX_TYPES, MANIFEST_TYPES, Descriptor, parse_object

_MANIFEST_BYTES: Final = 4 * 1024 * 1024
_SETTLED_S: Final = 5.0
_SMALL_BYTES: Final = 8 * 1024 * 1024
_ACCEPT: Final = {"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}


class Repository:
    """`push` asks for the right to push whenever a token is asked for, so that one token does for everything."""

    def __init__(self, transport: Transport, name: str, *, push: bool = False) -> None:
        self.transport = transport
        self.host = transport.host
        self.name = name
        self.scopes = (f"repository:{name}:{'pull,push' if push else 'pull'}",)
        self.uploads = UploadRequests(transport, name, self.scopes)
        self._label = f"{self.host}/{name}"

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        doing = f"reading {self._named(reference)}"
        try:
            reply = self._manifest_call("GET", reference, doing, (200,))
        except RegistryError as error:
            raise self._unknown(error, reference) if error.status == 404 else error from error.__cause__
        if len(reply.body) > _MANIFEST_BYTES:
            raise self._damaged(doing, "the manifest is larger than 4 MiB")
        digest = Digest.of(reply.body)
        for promised in (reference, reply.headers.get("docker-content-digest", "")):
            if promised.startswith("sha256:") and promised != str(digest):
                raise self._damaged(doing, f"the manifest is {digest}, not {promised}")
        return Descriptor(_media_type(reply), digest, len(reply.body)), reply.body

    def head_manifest(self, reference: str) -> Descriptor | None:
        reply = self._manifest_call("HEAD", reference, f"looking for {self._named(reference)}", (200, 404))
        if reply.status == 404:
            return None
        media_type = reply.headers.get("content-type", "").partition(";")[0]
        size = reply.headers.get("content-length", "")
        try:
            digest = Digest.parse(reply.headers.get("docker-content-digest", ""))
        except DigestError:
            return self.manifest(reference)[0]
        if not size.isdecimal() or media_type not in (*MANIFEST_TYPES, *INDEX_TYPES):
            return self.manifest(reference)[0]
        return Descriptor(media_type, digest, int(size))

    def put_manifest(self, reference: str, body: bytes, media_type: str) -> None:
        """May be made again: a lost answer changes nothing about what the registry has."""
        doing = f"writing {self._named(reference)}"
        reply = self._put(self._url("manifests", reference), body, media_type, doing=doing)
        stored = reply.headers.get("docker-content-digest", "")
        if not stored and ((found := self.head_manifest(reference)) is None or found.digest != Digest.of(body)):
            raise self._damaged(doing, "the registry took it, and does not have it")
        if stored.startswith("sha256:") and stored != str(Digest.of(body)):
            raise self._damaged(doing, f"the registry stored {stored}, not {Digest.of(body)}")

    def _put(self, url: str, body: bytes, media_type: str, *, doing: str) -> Reply:
        patience = self.transport.patience()
        headers = {"Content-Type": media_type}
        while True:
            try:
                return self.transport.call(
                    "PUT", url, doing=doing, scopes=self.scopes, expect=(200, 201, 202), headers=headers, body=body
                )
            except RegistryError as error:
                if not self._settles(error, patience):
                    raise

    def _settles(self, error: RegistryError | NetworkError, patience: Patience) -> bool:
        """A blob that somebody else commits at this moment is away, or half there, for an instant in distribution's
        file store: seen with several builds of one image at once."""
        passing = isinstance(error, RegistryError) and error.code in ("MANIFEST_BLOB_UNKNOWN", "DIGEST_INVALID")
        return passing and patience.wait(error, budget_s=_SETTLED_S)

    def blob_size(self, digest: Digest, *, patience: Patience | None = None) -> int | None:
        """None for a blob that is not in this repository."""
        doing = f"looking for {digest.short} in {self._label}"
        url = self._url("blobs", str(digest))
        head = self.transport.call(
            "HEAD",
            url,
            doing=doing,
            scopes=self.scopes,
            expect=(200, 404, 400, 403, 405, 501),
            patience=patience,
        )
        size = head.headers.get("content-length", "")
        if head.status == 404:
            return None
        if head.status == 200 and size.isdecimal():
            return int(size)
        # Some do not answer HEAD, and links to the storage behind a registry may be signed for GET alone.
        return self._size_by_range(url, doing)

    def blob(self, descriptor: Descriptor) -> Content:
        """Resumes by itself; not verified by digest, which needs all of it."""
        digest = descriptor.digest
        doing = f"reading {digest.short} of {self._label}"
        return RegistryBlob(self.transport, self._url("blobs", str(digest)), self.scopes, descriptor.size, doing)

    def small_blob(self, descriptor: Descriptor, *, limit_bytes: int = _SMALL_BYTES) -> bytes:
        doing = f"reading {descriptor.digest.short} of {self._label}"
        if descriptor.size > limit_bytes:
            raise self._damaged(doing, f"{descriptor.size} bytes, where at most {limit_bytes} make sense")
        body = b"".join(self.blob(descriptor).read())
        if Digest.of(body) != descriptor.digest:
            raise self._damaged(doing, f"the blob is {Digest.of(body)}, not {descriptor.digest}")
        return body

    def put_small_blob(self, body: bytes) -> Digest:
        """For configurations: in memory, so that it can be sent again as a whole."""
        digest = Digest.of(body)
        patience = self.transport.patience()
        while self.blob_size(digest, patience=patience) != len(body):
            session = self.uploads.begin(patience)
            error = self.uploads.put(session, digest, body, doing=f"uploading {digest.short} to {self._label}")
            if error is None:
                break
            if not self._settles(error, patience) and not self.transport.retry(error, patience):
                raise error
        return digest

    def mount(self, digest: Digest, source_repository: str) -> bool:
        """Take over a blob of another repository of this registry; False means that it has to be sent."""
        return self.uploads.mount(digest, source_repository)

    def tags(self, limit: int) -> list[str]:
        """The first tags; none for a repository that does not exist."""
        tags: list[str] = []
        url: str | None = f"{self._url('tags', 'list')}?n={limit}"
        while url and len(tags) < limit:
            reply = self.transport.call(
                "GET",
                url,
                doing=f"listing tags of {self._label}",
                scopes=self.scopes,
                expect=(200, 404),
                limit_bytes=_MANIFEST_BYTES,
            )
            if reply.status == 404:
                break
            found = parse_object(reply.body, "list of tags").get("tags")
            tags += [str(tag) for tag in cast("list[object]", found)] if isinstance(found, list) else []
            target, mark, _ = reply.headers.get("link", "").partition('>; rel="next"')
            url = self.transport.locate(target.strip().lstrip("<"), reply.url) if mark else None
        return tags[:limit]

    def ping(self) -> None:
        """Whether these credentials may push here: opens an upload and takes it back."""
        self.delete_upload(self.uploads.begin().location)

    def delete_upload(self, location: str) -> bool:
        """Whether the registry has forgotten it now; sessions that stay are purged by registries after days."""
        return self.uploads.cancel(location)

    def _url(self, *parts: str) -> str:
        return self.transport.url("/".join((self.name, *(quote(part, safe=":") for part in parts))))

    def _named(self, reference: str) -> str:
        return f"{self._label}{'@' if ':' in reference else ':'}{reference}"

    def _manifest_call(self, method: str, reference: str, doing: str, expect: tuple[int, ...]) -> Reply:
        url = self._url("manifests", reference)
        return self.transport.call(
            method,
            url,
            doing=doing,
            scopes=self.scopes,
            expect=expect,
            headers=_ACCEPT,
            limit_bytes=_MANIFEST_BYTES + 1,
        )

    def _size_by_range(self, url: str, doing: str) -> int | None:
        with self.transport.open("GET", url, doing=doing, scopes=self.scopes, headers={"Range": "bytes=0-0"}) as answer:
            if answer.status == 404:
                return None
            total = answer.headers.get("content-range", "").rpartition("/")[2]
            size = total if answer.status == 206 else answer.headers.get("content-length", "")
            if answer.status not in (200, 206):
                raise self.transport.refusal(answer, doing)
            if not size.isdecimal():
                raise self._damaged(doing, "the registry does not tell the blob's size")
            return int(size)

    def _unknown(self, error: RegistryError, reference: str) -> RegistryError:
        """Registries give the same answer for a wrong repository and a wrong tag; the list of tags tells which."""
        tags: list[str] | None = None
        with suppress(RegistryError, NetworkError):  # may be forbidden; then the first answer has to do
            tags = self.tags(20)
        if tags is None or error.code not in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN", ""):
            return error
        if tags:
            message, hint = f"{self._label} has no {reference}", f"it has: {', '.join(tags)}"
        else:
            message, hint = f"{self.host} has no repository {self.name}", "check the name; `docker login` may be needed"
        return RegistryError(message, hint=hint, host=self.host, status=404, code=error.code)

    def _damaged(self, doing: str, what: str) -> RegistryError:
        hint = "run the command again; if it stays so, the registry or a proxy before it is damaged"
        return RegistryError(f"{doing}: {what}", hint=hint, host=self.host, status=200)


def _media_type(reply: Reply) -> str:
    """As the server says, or as the document says where a plain file server stands in for a registry."""
    told = reply.headers.get("content-type", "").partition(";")[0].strip()
    if told in (*MANIFEST_TYPES, *INDEX_TYPES):
        return told
    try:
        own = cast("object", json.loads(reply.body))
    except ValueError:
        return told
    fields = cast("dict[str, object]", own) if isinstance(own, dict) else {}
    written = fields.get("mediaType")
    if isinstance(written, str):
        return written
    return INDEX_TYPES[0] if "manifests" in fields else MANIFEST_TYPES[0] if "layers" in fields else told
