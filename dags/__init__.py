"""Order of the stages, and the means to run them: a chain of commands, or Airflow. The work is in the stages."""
