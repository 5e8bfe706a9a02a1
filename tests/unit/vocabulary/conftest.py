"""Property tests have no deadline per example (a busy machine is no bug) and keep no database."""

from hypothesis import settings

settings.register_profile("vocabulary", deadline=None, database=None)
settings.load_profile("vocabulary")
