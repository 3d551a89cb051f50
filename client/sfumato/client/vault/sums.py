"""A job's secure sums at one branch: its key, the rosters it accepted, the masks.

All of it lives in memory. A vault that restarts has a new key and says so (`unknown-roster`); the coordinator then
opens the job again, and the others accept another roster, whose masks are other masks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfumato.client.policy import Policy
from sfumato.common import messages
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.job import SMALLEST_SET, Job
from sfumato.privacy.secure_sum import JobKey, Pairing, check_roster, job_context

Members = Callable[[], Mapping[str, Ed25519PublicKey]]
Mask = Callable[[npt.NDArray[np.uint64]], None]
MOST_JOBS = 64


@dataclass
class _Keys:
    own: JobKey
    pairings: dict[str, Pairing] = field(default_factory=dict)  # by roster hash; the latest few


class SecureSums:
    """The pairwise half of a branch. `members` are the pinned keys of the enrolled branches, read anew."""

    def __init__(self, branch: str, signer: Ed25519PrivateKey, policy: Policy, members: Members) -> None:
        self._branch = branch
        self._signer = signer
        self._policy = policy
        self._members = members
        self._jobs: dict[str, _Keys] = {}

    def admit(self, job: Job) -> None:
        """Raise Refusal unless the job withstands as many colluders, and sets are as large, as the policy asks."""
        if job.privacy.mode != "secure-sum":
            return
        if job.privacy.colluders < self._policy.min_colluders:
            raise Refusal(RefusalCode.NOT_APPROVED)
        if job.federation.min_branches < self._smallest(job):
            raise Refusal(RefusalCode.SET_TOO_SMALL)
        if self._branch not in self._members():
            raise Refusal(RefusalCode.BAD_ROSTER)

    def share(self, job_id: str, job: Job, job_hash: str) -> messages.KeyShare | None:
        """This branch's signed key for the job; the same one while this process lives."""
        if job.privacy.mode != "secure-sum":
            return None
        if job_id not in self._jobs:
            while len(self._jobs) >= MOST_JOBS:
                self._jobs.pop(next(iter(self._jobs)))
            self._jobs[job_id] = _Keys(
                JobKey.fresh(job_context(job_id, job_hash), self._branch, self._signer)
            )
        return self._jobs[job_id].own.share

    def accept(self, question: messages.Roster) -> str:
        """Check everyone's key and keep the roster. Returns its hash. Raises Refusal."""
        keys = self._jobs.get(question.job_id)
        if keys is None:
            raise Refusal(RefusalCode.UNKNOWN_ROSTER)
        roster = check_roster(question.members, self._members(), keys.own.job_id, keys.own.share)
        if roster.hash not in keys.pairings:
            while len(keys.pairings) >= 8:
                keys.pairings.pop(next(iter(keys.pairings)))
            keys.pairings[roster.hash] = Pairing(keys.own, roster)
        return roster.hash

    def check_set(self, question: messages.Sum, job: Job) -> None:
        """What a set must be whatever the roster: large enough, in order, and with this branch. Raises Refusal."""
        members = question.members
        if len(set(members)) < self._smallest(job):
            raise Refusal(RefusalCode.SET_TOO_SMALL)
        if list(members) != sorted(set(members)) or self._branch not in members:
            raise Refusal(RefusalCode.BAD_ROSTER)

    def mask(self, question: messages.Sum) -> Mask:
        """What hides this round's share from all but the whole set, checked. Raises Refusal.

        A mask is made once: where it was, and the answer was lost on its way to the disk, this branch has no share
        of that round and set any more.
        """
        keys = self._jobs.get(question.job_id)
        pairing = keys.pairings.get(question.roster or "") if keys else None
        if pairing is None:
            raise Refusal(RefusalCode.UNKNOWN_ROSTER)
        members = question.members
        if not set(members) <= set(pairing.names):
            raise Refusal(RefusalCode.BAD_ROSTER)
        pairing.check(round_=question.round, members=members)

        def mask(vector: npt.NDArray[np.uint64]) -> None:
            pairing.mask(vector, round_=question.round, members=members)

        return mask

    def forget(self, job_id: str) -> None:
        """The job is over: its key is gone, and with it whatever a thief of this machine could unmask."""
        self._jobs.pop(job_id, None)

    def _smallest(self, job: Job) -> int:
        return max(SMALLEST_SET, self._policy.min_secure_set, job.privacy.colluders + 2)
