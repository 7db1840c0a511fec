"""The databases on which the tests of the server stand."""

from tests.server.conftest import every_database as every_database
