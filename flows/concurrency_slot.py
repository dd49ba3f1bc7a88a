"""Let a flow run go on without its concurrency slot, where Prefect would end it.

A deployment has one slot, which its flow run holds by a lease and renews every 225 s. If that
fails, Prefect's engine ends the run: during an outage of the server, and always while the run waits
for an approval, because a pause gives the slot back.
"""

from contextlib import AbstractContextManager
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease


def keep_running_without_slot() -> None:
    """Make Prefect's engine renew the slot of a run without ending the run if that fails.

    A second run may start meanwhile; the locks of the store keep the two apart.
    """
    # Prefect has no setting for this.
    flow_engine.maintain_concurrency_lease = _renewing  # type: ignore[attr-defined,assignment]


def _renewing(
    lease_id: UUID, seconds: float, *, raise_on_lease_renewal_failure: bool = False
) -> AbstractContextManager[None]:
    """Renew a slot in a block; see `prefect.concurrency._leases.maintain_concurrency_lease`."""
    del raise_on_lease_renewal_failure
    return maintain_concurrency_lease(lease_id, seconds, suppress_warnings=True)
