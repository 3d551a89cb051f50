"""A job's rounds: open, ask, sum, close; who answered, who refused, who dropped. No I/O of its own.

Two sorts of round. Where each branch adds all the noise, one that drops is left out of that round and asked again
in the next. In a secure sum only the shares of a whole set make sense: if one of them is missing, the round is
asked again of those that answered, with fresh masks and noise, and charged again. Below `min_branches` the
job ends with a reason. Whatever happens, open branches are told to close, so that no reservation is left standing.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common import codec, fixed_point, messages
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.codec import FrameError
from sfumato.common.errors import RefusalCode, Unavailable
from sfumato.common.flower_tasks import RunEnded
from sfumato.common.job import SignedJob
from sfumato.common.learners.bins import Schema
from sfumato.privacy.mechanisms import SumNoise
from sfumato.privacy.plan import Plan
from sfumato.privacy.secure_sum import roster_hash, set_hash
from sfumato.server.conversation import BranchRecord, Conversation, Enrolled, JobFailed, Report, Weights
from sfumato.server.exchange import Exchange
from sfumato.server.journal import Journal, Kept, Standing
from sfumato.server.slots import Slots

GIVE_BACK_SECONDS = 30.0
AWAY = RefusalCode.VAULT_UNREACHABLE
REJOIN_TRIES = 10
BEYOND_NOISE = 50.0  # standard deviations: an empty slot there is no noise, but masks that do not cancel


class Rounds(Conversation):
    """The rounds of one signed job over one exchange.

    `left_open` are jobs of earlier runs, to be closed first; `given_back` says which branches did. `open_at`
    names the branches that opened this job and have not said that they closed it. What comes out is kept in
    `journal`, and what is in it already is not asked for again.
    """

    def __init__(
        self,
        exchange: Exchange,
        signed: SignedJob,
        report: Report,
        *,
        enrolled: Mapping[int, Enrolled] | None = None,
        left_open: Iterable[str] = (),
        join_timeout: float = 120.0,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(exchange, signed, report, enrolled)
        self.plan = Plan.of(signed.job, signed.contract)
        self.slots: list[Slots] = []
        self.sums = 0  # asked for, repeats included
        self.given_back: dict[str, set[str]] = {}
        self.open_at: list[str] = []
        self._join_timeout = join_timeout
        self._left_open = tuple(left_open)
        self._set: set[int] = set()  # nodes whose masks will cancel
        self._away: dict[int, int] = {}  # nodes whose vaults may come back, and how often to try yet
        self._roster: str | None = None
        self._repeats = 0
        self._journal = journal or Journal()
        self._resumed = self._journal.entries > 0
        self._replaying = False  # what was last asked for came out of the journal
        self._is_open = False

    # --- opening and closing -----------------------------------------------------------------------------

    def open(self) -> None:
        """Raises JobFailed or Unavailable when too few branches take part."""
        needed = self.job.federation.min_branches
        nodes = self._exchange.open(at_least=needed, timeout=self._join_timeout)
        self.report({"event": "joined", "branches": len(nodes)})
        self._give_back(nodes)
        self.open_at = sorted(self._name(n) for n in nodes)
        answers = self._open_at(nodes)
        # Who gave no answer, or lost its vault over it, may have opened the job all the same.
        clear = {n for n, (m, _) in answers.items() if isinstance(m, messages.Refused) and m.code is not AWAY}
        self.open_at = sorted(self._name(n) for n in nodes if n not in clear)
        self._require(len(self.branches), "opened the job")
        self._take_up()
        self._journal.opened(self._standing())
        if self.job.privacy.mode == "secure-sum":
            self._agree(self.branches)
        self._is_open = True

    def _take_up(self) -> None:
        """Go on from the journal: sums and repeats so far, and what was known of each branch, also of one that is
        not back yet."""
        standing = self._journal.standing
        self.sums, self._repeats = standing.sums, standing.repeats
        for known in map(BranchRecord.of_dict, standing.branches):
            record = self.branches.setdefault(self._node(known), known)
            record.customers = known.customers
            record.epsilon_spent, record.epsilon_budget = known.epsilon_spent, known.epsilon_budget
            record.rounds_answered, record.rounds_missed = known.rounds_answered, known.rounds_missed
            record.bytes_sent = known.bytes_sent
        self.open_at = sorted({*self.open_at, *(b["name"] for b in standing.branches)})
        if self._resumed:
            self.report({"event": "resumed", "sums": self.sums})

    def _node(self, known: BranchRecord) -> int:
        """A branch's node now; its node of before the restart where there is none."""
        names = {b.name: n for n, b in self.branches.items()}
        enrolled = {b.name: n for n, b in (self._enrolled or {}).items()}
        return names.get(known.name, enrolled.get(known.name, known.node_id))

    def _standing(self) -> Standing:
        branches = tuple({**b.as_dict(), "node_id": n} for n, b in self.branches.items())
        return Standing(self.sums, self._repeats, branches)

    def can_be_resumed(self, error: BaseException) -> bool:
        """Whether a later run may go on after this: the way to the branches was cut, not the job ended. Then it is
        not to be closed. A standing question outlasts a run that failed: what it has told would be lost."""
        ended = isinstance(error, RunEnded)  # by a person
        if self.plan.stands and isinstance(error, JobFailed):
            return self._journal.entries > 0 and not error.final
        cut = not isinstance(error, Exception) or (isinstance(error, Unavailable) and not ended)
        return self._journal.entries > 0 and (cut or (self._resumed and not self._is_open and not ended))

    def _open_at(self, nodes: Iterable[int]) -> Mapping[int, tuple[messages.Answer, codec.Vector | None]]:
        answers = self.ask(nodes, messages.OpenJob(signed_job=self.signed))
        for node, (message, _) in answers.items():
            if isinstance(message, messages.JobOpened):
                record = self.branches.setdefault(node, BranchRecord(name=message.branch, node_id=node))
                record.epsilon, record.noise_multiplier = message.epsilon, message.noise_multiplier
                record.key, record.reaches = message.key, message.reaches
                record.heads.append(message.ledger)
                self.report({"event": "opened", "branch": message.branch, "epsilon": message.epsilon})
        return answers

    def _agree(self, nodes: Iterable[int]) -> None:
        """Hand these branches one another's signed keys; who accepts all of them is in the set."""
        shares = {n: key for n in nodes if (key := self.branches[n].key) is not None}
        members = tuple(sorted(shares.values(), key=lambda s: s.branch))
        self._require(len(members), "gave a key for secure sums")
        self._roster = roster_hash(members)
        question = messages.Roster(job_id=self.signed.job_id, members=members)
        answers = self.ask(shares, question)
        self._set = {
            node
            for node, (m, _) in answers.items()
            if isinstance(m, messages.RosterAccepted) and m.roster == self._roster
        }
        self._require(len(self._set), "accepted the roster")

    def _give_back(self, nodes: Iterable[int]) -> None:
        """A branch that refuses to close a job does not know it, so it holds nothing for it."""
        timeout = min(GIVE_BACK_SECONDS, self.job.federation.round_timeout_seconds)
        for job_id in self._left_open:
            frame = codec.encode(messages.CloseJob(job_id=job_id))
            gathered = self._exchange.ask(dict.fromkeys(nodes, frame), timeout=timeout)
            self.given_back[job_id] = {self._name(n) for n, raw in gathered.answers.items() if _settled(raw)}

    def close(self) -> None:
        if not self.branches:
            return
        question = messages.CloseJob(job_id=self.signed.job_id)
        for node, (message, _) in self.ask(tuple(self.branches), question).items():
            if isinstance(message, messages.JobClosed):
                record = self.branches[node]
                record.epsilon_spent = message.epsilon_spent
                record.epsilon_remaining = message.epsilon_remaining
                record.canaries = message.canaries
                record.heads.append(message.ledger)
                self.open_at = [name for name in self.open_at if name != record.name]

    # --- sums --------------------------------------------------------------------------------------------

    def total(
        self, round_: int, length: int, body: Weights | None = None, *, bins: Schema | None = None
    ) -> NoisySum:
        """This round's noisy total over all branches, float64 [length]. Raises JobFailed."""
        ask = self.plan.ask(round_)
        privacy, secure = self.job.privacy, self.job.privacy.mode == "secure-sum"
        what: messages.What = "share" if secure else "sum"
        question = messages.Sum(job_id=self.signed.job_id, round=round_, bins=bins)
        kept = self._kept(what, round_, question, body)
        if kept is None:
            ask_for = self._secure_total if secure else self._local_sums
            kept = ask_for(round_, length, question, body)
            self._journal.keep(what, round_, kept, self._standing())
        sums = {members: v.astype(np.int64, copy=False) for members, v in kept.items()}
        noise = SumNoise(ask.noise_multiplier, 1, ask.sample_rate)
        if secure:
            (members,) = sums
            noise = SumNoise(
                ask.noise_multiplier, self.plan.times, ask.sample_rate, len(members), privacy.colluders
            )
        std = noise.total_std(ask.l2_sensitivity(length + self.phantom_slots), ask.max_norm)
        for members, part in sums.items():
            slots = fixed_point.decode(part[length:], ask.max_norm)
            self._check_fit(members, slots, std)
            self.slots.append(Slots(ask, round_, members, std, slots))
        total = fixed_point.add(sums.values())[:length]
        answered = tuple(sorted({name for members in sums for name in members}))
        return NoisySum(fixed_point.decode(total, ask.max_norm), std * math.sqrt(len(sums)), answered)

    @property
    def done_before(self) -> int:
        """How many rounds came out in earlier runs of this job."""
        return self._journal.rounds

    def _kept(
        self, what: messages.What, round_: int, question: messages.Question, body: Weights | None
    ) -> Kept | None:
        """What the journal has of this round. Raises BadInput if it was asked another question."""
        kept = self._journal.kept(what, round_, codec.encode(question, body))
        self._replaying = kept is not None
        return kept

    def _secure_total(
        self, round_: int, length: int, question: messages.Sum, body: Weights | None
    ) -> dict[tuple[str, ...], fixed_point.Ints]:
        self._rejoin()
        out, others = self._question_out(round_)
        while True:
            members = tuple(sorted(self.branches[n].name for n in self._set))
            self._require(len(members), f"are left for round {round_}")
            named = question.model_copy(update={"members": members, "roster": self._roster})
            frame = out or codec.encode(named, body)
            self._journal.ask("share", round_, frame, self._standing())
            answers = self.ask_frame(tuple(self._set), frame)
            shares = self._vectors(answers, "share", round_, length + self.phantom_slots, np.int64)
            lost = self._set - set(shares)
            if not lost:
                self.sums += 1
                self._set |= others
                return {members: fixed_point.add(v.astype(np.int64, copy=False) for v in shares.values())}
            unknown = {n for n in lost if _code(answers.get(n)) is RefusalCode.UNKNOWN_ROSTER}
            if out is not None and unknown == self._set:
                out = (
                    None  # all vaults restarted before one of them answered: the same set, by its new roster
                )
                continue
            out = None
            self.sums += 1
            self._away |= {
                # Its vault restarts: it may come back with a new key.
                node: REJOIN_TRIES
                for node in lost
                if node in unknown or _code(answers.get(node)) is AWAY
            }
            self._set -= lost
            self._ask_again(round_, sorted(self._name(n) for n in lost))

    def _question_out(self, round_: int) -> tuple[bytes | None, set[int]]:
        """The question of this round that was out when the coordinator ended, for the very set that it was for; and
        the branches outside of that set, for later rounds.

        Where one of the set is not back, that total is lost: no question, and the set is what is left of it.
        """
        frame = self._journal.asked("share", round_)
        if frame is None:
            return None, set()
        question, _ = codec.decode(frame, "question")
        asked = set(question.members) if isinstance(question, messages.Sum) else set()
        everyone = self._set
        self._set = {n for n in everyone if self.branches[n].name in asked}
        lost = asked - {self.branches[n].name for n in self._set}
        if lost:
            self._ask_again(round_, sorted(lost))
        return None if lost else frame, everyone - self._set

    def _ask_again(self, round_: int, lost: list[str]) -> None:
        self._repeats += 1
        self.report({"event": "repeat", "round": round_, "without": lost})
        if self._repeats > self.plan.repeats:
            raise JobFailed(
                f"round {round_} lost {', '.join(lost)}, and the job has no repeat left: "
                f"it paid for {self.plan.repeats} (federation.repeats)"
            )

    def _rejoin(self) -> None:
        """A vault that restarted has forgotten its key: it opens the job again and all agree on a new roster.

        Only branches whose courier answered are tried, for some rounds; one that is gone would cost a timeout.
        """
        if not self._away:
            return
        self._away = {n: tries - 1 for n, tries in self._away.items() if tries}
        answers = self._open_at(tuple(self._away))
        back = {n for n in self._away if isinstance(answers.get(n, (None,))[0], messages.JobOpened)}
        if back:
            self._away = {n: tries for n, tries in self._away.items() if n not in back}
            self._agree(self._set | back)

    def _local_sums(
        self, round_: int, length: int, question: messages.Sum, body: Weights | None
    ) -> dict[tuple[str, ...], fixed_point.Ints]:
        """Each branch's own, by its name: what it left out of its noise would be lost in the total."""
        answers = self._ask_all("sum", round_, question, body)
        sums = self._vectors(answers, "sum", round_, length + self.phantom_slots, np.int64)
        self.sums += 1
        self._require(len(sums), f"answered round {round_}")
        return {(self.branches[n].name,): v.astype(np.int64, copy=False) for n, v in sums.items()}

    def _ask_all(
        self, what: messages.What, round_: int, question: messages.Question, body: Weights | None
    ) -> Mapping[int, tuple[messages.Answer, codec.Vector | None]]:
        """Ask every branch for its own; as it was asked before where the coordinator ended meanwhile."""
        frame = self._journal.asked(what, round_) or codec.encode(question, body)
        self._journal.ask(what, round_, frame, self._standing())
        return self.ask_frame(tuple(self.branches), frame)

    @property
    def phantom_slots(self) -> int:
        return self.job.audit.empty_slots + self.job.audit.canaries

    def _check_fit(self, members: tuple[str, ...], slots: npt.NDArray[np.float64], std: float) -> None:
        empty = slots[: self.job.audit.empty_slots]
        if empty.size and float(np.abs(empty).max()) > BEYOND_NOISE * std:
            if len(members) == 1:
                raise JobFailed(f"{members[0]} sent a sum of something else")
            raise JobFailed("the shares do not fit together: a branch sent a share of something else")

    def report_progress(self, event: str, round_: int, rounds: int, names: list[str] | None = None) -> None:
        """A round is done; of secure sums, by the set that is left."""
        if self._replaying:
            return  # it was told when it was done
        branches = self.branches.values()
        self.report(
            {
                "event": event,
                "round": round_,
                "rounds": rounds,
                "branches": names or sorted(self.branches[n].name for n in self._set or self.branches),
                "epsilon_spent": {b.name: b.epsilon_spent for b in branches},
                "epsilon_budget": {b.name: b.epsilon_budget for b in branches},
            }
        )

    # --- asking ------------------------------------------------------------------------------------------

    def released(
        self,
        question: messages.Question,
        body: Weights | None,
        what: messages.What,
        *,
        round_: int,
        length: int,
    ) -> dict[int, codec.Vector]:
        """Vectors of every branch that released by itself, checked for kind and length."""
        kept = self._kept(what, round_, question, body)
        if kept is not None:
            nodes = {b.name: n for n, b in self.branches.items()}
            return {nodes[name]: vector for (name,), vector in kept.items()}
        answers = self._ask_all(what, round_, question, body)
        dtype = np.float32 if what == "weights" else np.int64
        vectors = self._vectors(answers, what, round_, length, dtype)
        step = {"size": "gave their size", "weights": f"answered round {round_}"}
        self._require(len(vectors), step.get(what, "answered the evaluation"))
        by_name: Kept = {(self.branches[n].name,): v for n, v in vectors.items()}
        self._journal.keep(what, round_, by_name, self._standing())
        return vectors

    def _vectors(
        self,
        answers: Mapping[int, tuple[messages.Answer, codec.Vector | None]],
        what: messages.What,
        round_: int,
        length: int,
        dtype: Any,
    ) -> dict[int, codec.Vector]:
        vectors: dict[int, codec.Vector] = {}
        for node, (message, vector) in answers.items():
            if not isinstance(message, messages.ReleasedAnswer) or vector is None:
                continue
            record = self.branches[node]
            if (
                (message.what, message.round) != (what, round_)
                or vector.size != length
                or vector.dtype != dtype
                or not self._for_this_set(message)
            ):
                self._drop(node, "answer has the wrong form")
                continue
            vectors[node] = vector
            record.heads.append(message.ledger)
            record.epsilon_spent = message.cost.epsilon_spent
            record.epsilon_budget = message.cost.epsilon_budget
        if what not in ("size", "score-histogram"):
            for node, record in self.branches.items():
                record.rounds_answered += node in vectors
                record.rounds_missed += node not in vectors
        return vectors

    def _for_this_set(self, message: messages.ReleasedAnswer) -> bool:
        names = sorted(self.branches[n].name for n in self._set)
        return message.what != "share" or message.members == set_hash(names)


def _code(answer: tuple[messages.Answer, codec.Vector | None] | None) -> RefusalCode | None:
    """Why this one was refused."""
    return answer[0].code if answer and isinstance(answer[0], messages.Refused) else None


def _settled(raw: bytes) -> bool:
    """Whether this answer to CloseJob means that the branch holds no reservation for the job."""
    try:
        message, _ = codec.decode(raw, "answer")
    except FrameError:
        return False
    unknown = isinstance(message, messages.Refused) and message.code is RefusalCode.UNKNOWN_JOB
    return unknown or isinstance(message, messages.JobClosed)
