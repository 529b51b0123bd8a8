-- -> {number of the last event, nodes, ids and holders of all users online}
return {
    tonumber(redis.call('GET', p .. 'events') or 0),
    redis.call('ZRANGE', p .. 'nodes', 0, -1),
    redis.call('HGETALL', p .. 'online'),
}
