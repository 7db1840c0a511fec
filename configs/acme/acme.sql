-- Acme's whole back office. Run at every start, in one transaction: creates and seeds what is not there yet.
--
-- Money is an integer in the currency's minor unit (EUR: cents). Times are UTC, ISO 8601. Rows are never
-- deleted. An order's status is computed from its amounts, so the two can never disagree.

BEGIN IMMEDIATE;

CREATE TABLE IF NOT EXISTS customers (
    id    TEXT PRIMARY KEY,
    name  TEXT NOT NULL,
    email TEXT NOT NULL,
    tier  TEXT NOT NULL CHECK (tier IN ('standard', 'gold')),
    note  TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE IF NOT EXISTS orders (
    order_id       TEXT PRIMARY KEY,
    customer_id    TEXT NOT NULL REFERENCES customers (id),
    item           TEXT NOT NULL,
    currency       TEXT NOT NULL,
    total_minor    INTEGER NOT NULL,
    paid_minor     INTEGER NOT NULL DEFAULT 0,
    refunded_minor INTEGER NOT NULL DEFAULT 0,
    status         TEXT NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN paid_minor = 0 THEN 'unpaid'
            WHEN refunded_minor = 0 THEN 'paid'
            WHEN refunded_minor < paid_minor THEN 'partially_refunded'
            ELSE 'refunded'
        END
    ) STORED,
    -- Whatever the code above it does, Acme never gives back more than it took.
    CHECK (0 <= refunded_minor AND refunded_minor <= paid_minor AND paid_minor <= total_minor)
) STRICT;

CREATE TABLE IF NOT EXISTS payments (
    payment_id   TEXT PRIMARY KEY,
    order_id     TEXT NOT NULL REFERENCES orders (order_id),
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    method       TEXT NOT NULL CHECK (method IN ('card', 'transfer')),
    paid_at      TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS refunds (
    refund_id       TEXT PRIMARY KEY,
    order_id        TEXT NOT NULL REFERENCES orders (order_id),
    amount_minor    INTEGER NOT NULL CHECK (amount_minor > 0),
    reason          TEXT NOT NULL,
    status          TEXT NOT NULL DEFAULT 'issued' CHECK (status IN ('issued', 'cancelled')),
    issued_at       TEXT NOT NULL,
    cancelled_at    TEXT,
    -- One key, one refund, however often it is asked for.
    idempotency_key TEXT UNIQUE
) STRICT;

CREATE TABLE IF NOT EXISTS tickets (
    ticket_id   TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL REFERENCES customers (id),
    subject     TEXT NOT NULL,
    body        TEXT NOT NULL,
    status      TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'closed')),
    resolution  TEXT NOT NULL DEFAULT '',
    opened_at   TEXT NOT NULL,
    closed_at   TEXT
) STRICT;

CREATE TABLE IF NOT EXISTS outbox (
    mail_id   TEXT PRIMARY KEY,
    recipient TEXT NOT NULL,
    subject   TEXT NOT NULL,
    body      TEXT NOT NULL,
    queued_at TEXT NOT NULL
) STRICT;

INSERT INTO customers (id, name, email, tier, note) VALUES
    ('cus-101', 'Example Bakery', 'orders@bakery.example', 'gold', ''),
    ('cus-102', 'Example Cycles', 'office@cycles.example', 'standard', ''),
    ('cus-103', 'Example Books', 'hello@books.example', 'standard', 'Prefers mail to calls.'),
    ('cus-104', 'Example Garden', 'desk@garden.example', 'gold', '')
ON CONFLICT DO NOTHING;

INSERT INTO orders (order_id, customer_id, item, currency, total_minor, paid_minor) VALUES
    ('ord-1001', 'cus-101', 'Kettle, 1.7 l', 'EUR', 8000, 8000),
    ('ord-1002', 'cus-102', 'Workbench, folding', 'EUR', 64000, 64000),
    ('ord-1003', 'cus-103', 'Reading lamp, set of 40', 'EUR', 750000, 750000),
    ('ord-1004', 'cus-104', 'Garden hose, 25 m', 'EUR', 4500, 4500),
    ('ord-1005', 'cus-101', 'Scale, 5 kg', 'EUR', 3900, 0)
ON CONFLICT DO NOTHING;

INSERT INTO payments (payment_id, order_id, amount_minor, method, paid_at) VALUES
    ('pay-5001', 'ord-1001', 8000, 'card', '2026-01-12T09:30:00+00:00'),
    ('pay-5002', 'ord-1002', 64000, 'card', '2026-01-13T14:05:00+00:00'),
    ('pay-5003', 'ord-1003', 750000, 'transfer', '2026-01-14T08:00:00+00:00'),
    ('pay-5004', 'ord-1004', 4500, 'card', '2026-01-15T16:45:00+00:00')
ON CONFLICT DO NOTHING;

INSERT INTO tickets (ticket_id, customer_id, subject, body, opened_at) VALUES
    ('tic-3001', 'cus-101', 'The kettle leaks', 'It drips at the handle. Please refund ord-1001.',
     '2026-01-20T10:00:00+00:00'),
    ('tic-3002', 'cus-102', 'One leg is bent', 'We keep the bench, but would like part of the price back.',
     '2026-01-21T11:20:00+00:00')
ON CONFLICT DO NOTHING;

COMMIT;
