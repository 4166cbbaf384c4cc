"""The kind policy: puts another policy in force, by its hash."""

from signer.config.policy_documents import PolicyText
from signer.config.policy_files import policy_files
from signer.errors import ConfigError
from signer.officers.kinds.base import Details, Effects, OperationKind, Work
from signer.officers.kinds.operation_context import OperationContext, OperationError
from signer.policy.difference import difference
from signer.text import count

FILES_HOLD = "the appliance's files hold"
WRITTEN = "the appliance's own files hold it"


class PutPolicy(Details):
    """The SHA-256 of a policy, and that of the one it replaces with its revision."""

    policy_sha256: str = ""
    replaces: str = ""
    in_force_since: int = 0


class PutPolicyKind(OperationKind[PutPolicy]):
    """Puts a policy in force: the one that is attached, else that of the appliance's files."""

    name = "policy"
    details = PutPolicy
    names = "policy_sha256"

    def complete(self, details: PutPolicy, context: OperationContext) -> PutPolicy:
        draft = sent(context) if context.attachment else drafted(context)
        if details.policy_sha256 not in ("", draft.policy.sha256):
            raise OperationError(
                f"policy_sha256: {'the attachment is' if context.attachment else FILES_HOLD}"
                f" {draft.policy.sha256}: give the files of the policy that you mean"
            )
        return PutPolicy(
            policy_sha256=draft.policy.sha256,
            replaces=context.policy.policy.sha256,
            in_force_since=context.state.policy_since,
        )

    def problems(self, details: PutPolicy, context: OperationContext) -> list[str]:
        problems = replaced_problems(details, context)
        if details.policy_sha256 == context.policy.policy.sha256:
            problems.append("this policy is in force already: change the files first")
        policy = self._text(details, context).policy
        return problems + policy.officer_problems(context.state.officers)

    def documents(self, details: PutPolicy, context: OperationContext) -> list[bytes]:
        if not context.attachment:
            return [self._text(details, context).text]
        attached = sent(context)
        if attached.policy.sha256 != details.policy_sha256:
            raise OperationError("attachment: is not the policy that the operation names")
        return [attached.text]

    def difference(self, details: PutPolicy, context: OperationContext) -> list[str]:
        text = self._text(details, context)
        lines = difference(context.policy.policy, text.policy)
        if gone := sum(line.startswith("- facility ") for line in lines):
            lines.insert(0, f"! it removes {count(gone, 'facility', 'facilities')}")
        lines = lines or ["  the rules have the same effect as before"]
        if problem := unwritten(text, context):
            lines.append(f"! the appliance's own files stay as they are: {problem}")
        return lines

    def execute(self, details: PutPolicy, work: Work) -> Effects:
        return put_in_force(self._text(details, work.context), work.context)

    def _text(self, details: PutPolicy, context: OperationContext) -> PolicyText:
        """Returns the policy: stored with the proposal, or before that the one in the files."""
        stored = context.document(details.policy_sha256)
        try:
            policy = drafted(context) if stored is None else context.read_policy(stored)
        except (ConfigError, ValueError) as error:
            raise OperationError(
                f"{details.policy_sha256} is not a valid policy here: {error}"
            ) from None
        if policy.policy.sha256 != details.policy_sha256:
            raise OperationError(
                f"the policy {details.policy_sha256} is neither stored nor in the files"
            )
        return policy


def sent(context: OperationContext) -> PolicyText:
    """Reads the policy that an officer has attached; raises OperationError."""
    try:
        return context.read_policy(context.attachment)
    except ConfigError as error:
        raise OperationError(*map(str, error.problems)) from None
    except ValueError as error:
        raise OperationError(f"attachment: {error}") from None


def put_in_force(text: PolicyText, context: OperationContext, **result: object) -> Effects:
    """Returns the effects of an operation that puts a policy in force; ``result`` says more."""
    return Effects(
        policy=text.text,
        policy_since=context.stored.policy_since,
        officers_since=context.stored.officers_since,
        result={
            "policy_sha256": text.policy.sha256,
            **result,
            "policy_files": unwritten(text, context) or WRITTEN,
        },
    )


def unwritten(text: PolicyText, context: OperationContext) -> str:
    """Returns why the appliance's files will not hold a policy once it is in force, else ""."""
    try:
        if context.draft().policy.sha256 == text.policy.sha256:
            return ""
    except ConfigError as error:
        return " ".join(str(error).split())
    if not context.policy_folder and len(policy_files(text.text)) > 1:
        return "they are one file, and this policy has several"
    return context.files_problem()


def drafted(context: OperationContext) -> PolicyText:
    """Reads the policy in the appliance's files; raises OperationError."""
    try:
        return context.draft()
    except ConfigError as error:
        raise OperationError(*str(error).splitlines()) from None


def replaced_problems(details: PutPolicy, context: OperationContext) -> list[str]:
    """Returns why a change of the policy is no longer the one that officers saw."""
    seen = (details.replaces, details.in_force_since)
    if seen == (context.policy.policy.sha256, context.state.policy_since):
        return []
    return ["another policy was put in force since this was proposed: propose it again"]
