-- -> {number of the last event, ids and holders of all who are online}
return {tonumber(redis.call('GET', p .. 'events') or 0), redis.call('HGETALL', p .. 'online')}
