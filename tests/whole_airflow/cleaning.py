"""`python -m tests.whole_airflow.cleaning`: Airflow's own cleaning up of bundle versions, as its scheduler does at times."""

from airflow.dag_processing.bundles.base import BundleUsageTrackingManager

# In the environment of it: whatever is not in use is stale.
AT_ONCE = {
    "AIRFLOW__DAG_PROCESSOR__STALE_BUNDLE_CLEANUP_AGE_THRESHOLD": "0",
    "AIRFLOW__DAG_PROCESSOR__STALE_BUNDLE_CLEANUP_MIN_VERSIONS": "0",
}

if __name__ == "__main__":
    BundleUsageTrackingManager().remove_stale_bundle_versions()
