"""dagseal's command line and its Airflow adapters: thin, they only call the other packages."""
