"""Find the scored row that each label belongs to, and what it changes there, in DuckDB."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from nnbuild.live.jobs import (
    GLOBAL,
    ID_COLUMNS,
    ScoredInput,
    class_names,
    jobs_table,
    place_labels,
    scored_inputs,
)
from nnbuild.store import Store
from nnbuild.store.query_views import PART, register_numbered


def match_labels(connection: Any, store: Store) -> None:
    """Create the table `outcomes`: each row of `arrived` with its example, and what it changes.

    Args:
        connection: DuckDB connection with the table `arrived`, the rows of files of labels by
            `label_files.read`, and the variable `now`.
        store: Store with the scored rows and the labels so far, as the view `labels`.
    """
    _resolve(connection, store)
    place_labels(connection)
    connection.execute(_OUTCOMES)
    connection.execute("drop table resolved")


def _resolve(connection: Any, store: Store) -> None:
    """Create the table `resolved`: each row with its example and its class, or a reason."""
    jobs = scored_inputs(store)
    names = class_names(store, [each.run_id for each in jobs])
    lists = list(dict.fromkeys(names.values()))
    numbers = [lists.index(names[each.run_id]) for each in jobs]
    table = jobs_table(jobs, class_list=pa.array(numbers, pa.int32()))
    connection.register("jobs", table)
    connection.register("class_names", _class_table(lists))
    connection.execute(
        "create table incoming as select a.* replace "
        r"(case when a.key = '' then null else a.key end as key, coalesce(a.number, "
        r"case when regexp_full_match(a.key, '-?[1-9][0-9]{0,18}|0') "
        "then try_cast(a.key as bigint) end) as number, "
        "coalesce(a.observed_at, try_cast(a.observed_text as timestamptz)) as observed_at), "
        "j.origin as scope from arrived a left join jobs j on j.score_id = a.asked"
    )
    hits = " union all ".join(_hits(connection, store, jobs)) or _NO_HITS
    connection.execute(
        f"create table matched as with hits as ({hits}) "
        "select arrival, by_text, bool_or(global) as global, "
        "max(job) as job, "
        "min(origin) filter (not global) as origin, "
        "max(origin) filter (not global) as other_origin "
        "from hits group by arrival, by_text "
        "qualify row_number() over (partition by arrival order by by_text desc) = 1"
    )
    connection.execute(_RESOLVED)
    connection.execute("drop table incoming")
    connection.execute("drop table matched")


_NO_HITS = (
    "select null::bigint as arrival, null::bigint as job, null::bigint as origin, "
    "null::boolean as by_text, null::boolean as global where false"
)


def _hits(connection: Any, store: Store, jobs: Sequence[ScoredInput]) -> Iterator[str]:
    """Yield a query for each kind of identifier, which finds the scored rows with a label's ID."""
    asked, free = (
        connection.execute(f"select count(*) from incoming where asked is {test}").fetchall()[0][0]
        for test in ("not null", "null")
    )
    for identifier, column in ID_COLUMNS.items():
        ids = {
            each.score_id: number
            for number, each in enumerate(jobs)
            if each.identifier == identifier
        }
        if not ids:
            continue
        view, by_text = f"scores_{identifier}", column != "example_id"
        if not register_numbered(connection, store, "scores", ids, alias=view, columns=[column]):
            continue  # the jobs have no rows
        key = "i.key" if by_text else "i.number"
        select = (
            f"select i.arrival, s.{PART} as job, j.origin, {by_text} as by_text, "
            f"{identifier in GLOBAL and 'i.asked is null'} as global "
            f"from {view} s join jobs j on j.job = s.{PART} join incoming i "
            f'on s."{column}" = {key} and '
        )
        if free:
            yield select + "i.asked is null"
        if asked:
            yield select + "i.scope = j.origin"


def _class_table(lists: Sequence[tuple[str, ...]]) -> pa.Table:
    """Return a table of the class that each text means, for each list of class names.

    A label is the name of a class. Unless all names are numbers, it may also be the class's number.
    """
    rows = []
    for number, names in enumerate(lists):
        texts = {name: label for label, name in enumerate(names)}
        if any(not name.isdecimal() for name in names):
            texts = {str(label): label for label in range(len(names))} | texts
        rows += [(number, text, label, names[label]) for text, label in texts.items()]
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    kinds = {
        "class_list": pa.int32(),
        "text": pa.string(),
        "class": pa.int16(),
        "name": pa.string(),
    }
    return pa.table(
        [pa.array(values, kind) for values, kind in zip(columns, kinds.values(), strict=True)],
        names=list(kinds),
    )


# The classes of a model file have no names, so any number is accepted as a label of its rows.
_RESOLVED = """
create table resolved as
select i.*, m.by_text,
  case when not m.global then o.score_id end as owner,
  case when not m.global then o.digest end as input_digest,
  case when m.by_text then null else i.number end as example_id,
  case when m.by_text then i.key end as example_key,
  coalesce(c.class, case when n.known is null
    and regexp_full_match(i.label, '[0-9]{1,4}') then i.label::smallint end) as class,
  c.name,
  case
    when i.key is null and i.number is null then 'no ID'
    when i.label is null then 'no label'
    when i.observed_at is null then 'time of the observation is not a time'
    when i.observed_at > getvariable('now') then 'observed in the future'
    when i.observed_at < timestamptz '1900-01-01 00:00:00+00' then 'observed before 1900'
    when i.asked is not null and i.scope is null then 'no scoring job ' || i.asked
    when m.arrival is null then 'no scored row has this ID'
    when not m.global and m.origin <> m.other_origin
      then 'several inputs have a row with this ID; name its job in a column score_id'
    when coalesce(c.class, case when n.known is null
      and regexp_full_match(i.label, '[0-9]{1,4}') then 0 end) is null then 'unknown class'
  end as reason
from incoming i
left join matched m on m.arrival = i.arrival
left join jobs j on j.job = m.job
left join jobs o on o.job = m.origin
left join class_names c on c.class_list = j.class_list and c.text = i.label
left join (select class_list, true as known from class_names group by class_list) n
  on n.class_list = j.class_list
"""
_KEY = "owner, example_id, example_key"
# Gives each row its version, and its effect on the label that counts.
# `newest` is the latest time of observation of a label and those that arrived before it. A label
# with this time counts from its arrival until another label has a time that is at least as late.
# Classes are compared by name, since their numbers can differ between runs.
_OUTCOMES = f"""
create table outcomes as
with known as (
  select l.owner, l.example_id, l.example_key, count(*) as versions,
    arg_max(coalesce(l.label_name, l.label::varchar), {{'o': l.observed_at, 'v': l.version}})
      as class,
    max(l.observed_at) as observed_at
  from placed l
  where (l.found_by is null or l.owner is not null)
    and (coalesce(l.owner, ''), coalesce(l.example_id, -1), coalesce(l.example_key, '')) in (
    select (coalesce(owner, ''), coalesce(example_id, -1), coalesce(example_key, ''))
    from resolved where reason is null)
  group by all
), every_label as (
  select -1 as arrival, {_KEY}, class, observed_at, versions from known
  union all
  select arrival, {_KEY}, coalesce(name, class::varchar), observed_at, 1
  from resolved where reason is null
), ordered as (
  select *, sum(versions) over arrivals as version, max(observed_at) over arrivals as newest
  from every_label window arrivals as (partition by {_KEY} order by arrival)
), counting as (
  select *, last_value(case when observed_at = newest then class end ignore nulls) over (
    partition by {_KEY} order by arrival rows between unbounded preceding and 1 preceding
  ) as before from ordered
)
select r.*, c.version::integer as version, case
    when r.reason is not null then 'quarantined'
    when c.before is null then 'labelled'
    when c.observed_at = c.newest and c.class <> c.before then 'corrected'
    else 'repeated'
  end as outcome
from resolved r left join counting c on c.arrival = r.arrival
order by r.arrival
"""
