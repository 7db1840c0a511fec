"""What PostgreSQL runs to write a transaction in one go: the stored function `remit_write`, as SQL.

A statement for each table and each change, sent one after the other, makes a dozen round trips of a
transaction, which cost more than its commit does. So what it writes (`redo.Gathered`) is sent as one value,
and taken apart over there. A migration that changes a table, or goes with another form of `redo.py`, creates
the function anew. It runs with the rights of whoever calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary

from remit.redo import FORMS, NOT_THERE, OVER_ACCOUNT, Form
from remit.tables import metadata

if TYPE_CHECKING:
    from sqlalchemy import Column, Table

#: What a value is cast to. The most special first, for a BigInteger is an Integer, too.
_CASTS = ((BigInteger, "bigint"), (Integer, "integer"), (Boolean, "boolean"))

#: So many changes of one kind are made one after the other, which begins sooner; more of them by one
#: statement, which takes less for each. No row changes twice in a transaction, and one that would is missed.
_FEW = 3


def remit_write() -> str:
    """CREATE FUNCTION: write `gathered` (`Gathered.as_json`), or return false where others have written.

    `seen` is the count in `write_turn` that the caller knows; null where it has the turn already. What is
    written `lazily` may be lost with the power.
    """
    inserts = "".join(
        _insert(table, f"new->'{table.name}'", f"new ? '{table.name}'") for table in metadata.sorted_tables
    )
    accounts = _insert(metadata.tables["accounts"], "gathered->2", "gathered->2 <> '[]'", OVER_ACCOUNT)
    updates = "".join(_update(change, form) for change, form in FORMS.items())
    return f"""
CREATE FUNCTION remit_write(seen bigint, gathered jsonb, lazily boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  new jsonb = gathered->0;
  changed jsonb = gathered->1;
  v jsonb;
  hits bigint;
BEGIN
  IF lazily THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  END IF;
  IF seen IS NOT NULL THEN
    UPDATE write_turn SET writes = writes + 1 WHERE writes = seen;
    IF NOT FOUND THEN
      RETURN false;
    END IF;
  END IF;{inserts}{updates}{accounts}
  RETURN true;
END$$"""  # noqa: S608 - all of it is ours


def _insert(table: Table, rows: str, given: str, over: str = "") -> str:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    values = ", ".join(_value(column, place) for place, column in enumerate(table.columns))
    return f"""
  IF {given} THEN
    INSERT INTO {table.name} ({names}) SELECT {values} FROM jsonb_array_elements({rows}) AS v {over};
  END IF;"""  # noqa: S608 - all of it is ours


def _update(change: str, form: Form) -> str:
    columns = metadata.tables[form.table].columns
    sets = ", ".join(f'"{name}" = {_value(columns[name], place)}' for place, name in enumerate(form.sets))
    key = " AND ".join(
        f'"{name}" = {_value(columns[name], place)}' for place, name in enumerate(form.key, len(form.sets))
    )
    rows = f"changed->'{change}'"
    missed = f"RAISE EXCEPTION USING ERRCODE = '{NOT_THERE}', MESSAGE = '{change}';"
    return f"""
  IF jsonb_array_length({rows}) > {_FEW} THEN
    UPDATE {form.table} SET {sets} FROM jsonb_array_elements({rows}) AS v WHERE {key} AND {form.only};
    GET DIAGNOSTICS hits = ROW_COUNT;
    IF hits <> jsonb_array_length({rows}) THEN
      {missed}
    END IF;
  ELSE
    FOR v IN SELECT jsonb_array_elements({rows}) LOOP
      UPDATE {form.table} SET {sets} WHERE {key} AND {form.only};
      IF NOT FOUND THEN
        {missed}
      END IF;
    END LOOP;
  END IF;"""  # noqa: S608 - all of it is ours


def _value(column: Column[Any], place: int) -> str:
    """The value at this place of the row `v`, exactly."""
    if isinstance(column.type, LargeBinary):
        return f"decode(v->{place}->>'hex', 'hex')"
    for kind, cast in _CASTS:
        if isinstance(column.type, kind):
            return f"(v->>{place})::{cast}"
    return f"v->>{place}"
