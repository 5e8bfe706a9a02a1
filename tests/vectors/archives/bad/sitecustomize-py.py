from airflow.sdk import DAG

with DAG('etl'):
    pass
