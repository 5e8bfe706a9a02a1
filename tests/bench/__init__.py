"""`python -m tests.bench`: how long the main things take, beside what Airflow needs for the same. Not collected by pytest."""
