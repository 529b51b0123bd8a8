-- skeleton -> {id, name, password hash if there is one} of the user with it, or nothing
local id = redis.call('HGET', p .. 'names', ARGV[1])
return id and {id, redis.call('HGET', p .. 'users', id), redis.call('HGET', p .. 'passwords', id) or nil}
