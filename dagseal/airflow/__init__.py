"""What plugs dagseal into Airflow, and Airflow's classes into dagseal."""
